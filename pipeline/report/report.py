"""Artefacts -> one HTML page that needs nothing else: clips, curves, numbers, origins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.copying import verdict
from pipeline.frames.tars import Rejected
from pipeline.report.artefacts import Artefact
from pipeline.report.charts import number
from pipeline.report.clips import Clip, NearestPair, Pair
from pipeline.report.curves import Log, along_the_video, distances_from_training, learning
from pipeline.report.findings import distances, flat, headlines, other_numbers
from pipeline.report.pages import templates
from pipeline.report.strips import (
    animate,
    nearest_strips,
    pair_strips,
    preview_rows,
    samples_beside,
)

SHOWN_REJECTS = 40


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything a report may show; what is empty is left out."""

    lede: str
    fps: float = 8.0
    samples: Sequence[Clip] = ()
    pairs: Sequence[Pair] = ()
    pairs_split: str = "test"
    previews: Mapping[int, Sequence[Clip]] = field(default_factory=dict)
    """Step of training -> what the model drew of the same seeds by then."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The contents of metrics.json."""
    nearest: Sequence[NearestPair] = ()
    training_log: Log = ()
    codebook_size: int | None = None
    """Tokens that the model of this log tells apart."""
    tokenizer_log: Log = ()
    artefacts: Sequence[Artefact] = ()
    rejected: Sequence[Rejected] = ()
    params: str = ""


def make_report(contents: Contents) -> str:
    """Writes the page by `report.html.j2`, which escapes every text; nothing is fetched or run."""
    pages = templates()
    pages.filters["number"] = number
    return pages.get_template("report.html.j2").render(
        contents=contents, **_clips(contents), **_numbers(contents)
    )


def _clips(contents: Contents) -> dict[str, Any]:
    fps = contents.fps
    beside = samples_beside(contents.pairs, contents.samples)
    more = enumerate(contents.samples[len(beside) :], start=len(beside) + 1)
    return {
        "pairs": pair_strips(contents.pairs, beside, fps),
        "num_beside": len(beside),
        "more_samples": [animate(clip, fps, f"new video {index}") for index, clip in more],
        "preview_steps": sorted(contents.previews),
        "previews": preview_rows(contents.previews, fps),
        "nearest": nearest_strips(contents.nearest, fps),
    }


def _numbers(contents: Contents) -> dict[str, Any]:
    evaluation = contents.evaluation
    metrics = evaluation.get("metrics", {})
    protocol = evaluation.get("protocol", {})
    rejected = [(item.name, item.reason) for item in contents.rejected[:SHOWN_REJECTS]]
    if (more := len(contents.rejected) - SHOWN_REJECTS) > 0:
        rejected.append((f"{more:,} more", ""))
    return {
        "headlines": list(headlines(metrics)),
        "distances": distances(metrics),
        "num_videos": protocol.get("num_videos"),
        "along": along_the_video(metrics),
        "verdict": verdict(evaluation),
        "from_training": distances_from_training(evaluation.get("copying") or {}),
        "learning": learning(
            metrics, contents.training_log, contents.tokenizer_log, contents.codebook_size
        ),
        "other_numbers": other_numbers(metrics),
        "protocol": flat(protocol),
        "not_computed": list(evaluation.get("not_computed", {}).items()),
        "rejected": rejected,
    }
