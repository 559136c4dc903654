"""What the report says of each artefact, and whether they belong together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import FrameError, PipelineError
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import FrameFolder, Rejected
from pipeline.rates import RECORD
from pipeline.report.report import Artefact
from pipeline.storage.files import parse_json
from pipeline.storage.places import Place, open_file
from pipeline.store.reader import TokenStore

MEASURED = {
    "Tokenizer": "tokenizer",
    "Tokens": "tokens",
    "Transformer": "model",
    "New videos": "samples",
}
"""Artefacts, and what metrics.json calls them."""


def check_measured(
    evaluation: Mapping[str, Any], artefacts: Sequence[Artefact], path: Path | None
) -> None:
    """Raises PipelineError if numbers are of something else than what is shown beside them."""
    measured = evaluation.get("protocol", {}).get("identities", {})
    for artefact in artefacts:
        what = MEASURED.get(artefact.name)
        if what in measured and measured[what] != artefact.identity:
            raise PipelineError(
                f"{path} was measured with {what} {measured[what]}, but the {what} given here has "
                f"{artefact.identity}; measure again with `mebt evaluate`."
            )


def times(values: Sequence[int]) -> str:
    """Writes sizes with signs of multiplication between them."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, values))


def _window_bits(store: TokenStore) -> float:
    return math.prod(store.grid) * math.log2(store.codebook_size)


def lede(store: TokenStore, drawn: TokenStore | None) -> str:
    """Says in two sentences what was made of what."""
    info = store.info
    total = sum(store.num_windows(split) for split in store.splits)
    count = math.prod(store.grid)
    if info.frames and info.size:
        pixels = info.frames * info.size**2 * 3
        text = (
            f"{total:,} windows of real video, {info.frames} frames of "
            f"{times([info.size, info.size])} pixels each, became {count:,} tokens apiece: "
            f"{8 * pixels / _window_bits(store):,.0f} times fewer bits than their pixels have."
        )
    else:
        text = f"{total:,} windows of video came as {count:,} tokens each."
    if drawn is None:
        return text
    number = drawn.num_windows(drawn.splits[0])
    return (
        f"{text} A transformer learned to fill in tokens that are hidden from it. Then it was "
        f"shown nothing at all, and filled in {number:,} windows: new videos."
    )


@dataclass(frozen=True)
class Extracted:
    """What extract says of the frames that it made; nothing if others made them."""

    num_videos: int = 0
    clips: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def read_extracted(frames: Place) -> Extracted:
    """Reads the record of extract. Raises FrameError if that is not what extract writes."""
    place = frames / RECORD if isinstance(frames, Path) else f"{frames}/{RECORD}"
    try:
        with open_file(place) as file:
            made = parse_json(file.read(), place, FrameError, "frame folder")
    except FileNotFoundError:
        return Extracted()
    try:
        clips = {str(split): int(count) for split, count in made["clips"].items()}
        rejected = [Rejected(**item) for item in made["rejected"]]
        return Extracted(int(made["num_videos"]), clips, rejected)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FrameError(f"{place} is not what `mebt extract` writes; delete it.") from None


def frame_artefacts(extracted: Extracted, frames: Place, found: FrameFolder) -> Iterator[Artefact]:
    """Describes the videos, if it is known which they were, and the frames."""
    if extracted.num_videos:
        kept = ", ".join(f"{count:,} {split}" for split, count in extracted.clips.items())
        yield Artefact(
            name="Videos",
            about=f"{extracted.num_videos:,} given, cut into clips; train and test split by time.",
            facts=[("clips kept", kept), ("rejected", f"{len(extracted.rejected):,}")],
        )
    splits = {video.split: 0 for video in found.videos}
    for video in found.videos:
        splits[video.split] += 1
    yield Artefact(
        name="Frames",
        about=f"{sum(len(video.frames) for video in found.videos):,} pictures in order.",
        facts=[(f"{split} videos", f"{count:,}") for split, count in splits.items()],
        identity=source_fingerprint(found.videos, frames),
    )


def too_short(found: FrameFolder, store: TokenStore) -> list[Rejected]:
    """Lists videos of which no window was cut."""
    used = {name for s in store.splits for name in store.plan(s)["video"].unique().to_pylist()}
    return [
        Rejected(f"{video.split}/{video.name}", f"{len(video.frames)} frames, too few for a window")
        for video in found.videos
        if video.name not in used
    ]


def token_artefact(store: TokenStore) -> Artefact:
    """Describes the tokens of real videos."""
    facts = [(f"{split} windows", f"{store.num_windows(split):,}") for split in store.splits]
    return Artefact(
        name="Tokens",
        about=f"A grid of {times(store.grid)} tokens (time, height, width) for each window.",
        facts=[*facts, ("bytes a window", f"{math.ceil(_window_bits(store) / 8):,}")],
        identity=store.fingerprint,
    )


def sample_artefact(drawn: TokenStore) -> Artefact:
    """Describes new videos, and how they were drawn."""
    config: Mapping[str, Any] = drawn.info.extra.get("sample", {})
    return Artefact(
        name="New videos",
        about=f"{drawn.num_windows(drawn.splits[0]):,} token grids, drawn from seeds.",
        facts=[(key.replace("_", " "), str(value)) for key, value in config.items()],
        identity=drawn.fingerprint,
    )
