"""What a report draws as curves: over training, over mask ratios, along videos, over distances."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from pipeline.report.charts import Level, Series, line_chart
from pipeline.report.meanings import AT_MASK, OVER_TIME, SETS

Log = Sequence[Mapping[str, Any]]
"""Lines of a metrics.jsonl."""

COLOURS = {"real": "c4", "reconstructions": "c2", "samples": "c1"}
"""Set of videos -> class of the page's style that colours it."""


@dataclass(frozen=True)
class Card:
    """A chart with its heading."""

    title: str
    about: str
    drawing: Markup
    """Empty if there was nothing to draw."""


def learning(
    metrics: Mapping[str, float], training_log: Log, tokenizer_log: Log, codebook_size: int | None
) -> list[Card]:
    """Draws how the transformer and the tokenizer learned; one beside the loss of a blind guess."""
    blind = [Level("blind guess", math.log(codebook_size))] if codebook_size else []
    cards = (
        _transformer_loss(training_log, blind),
        _loss_by_share(training_log, blind),
        *_by_mask_ratio(metrics),
        *_tokenizer(tokenizer_log),
    )
    return [card for card in cards if card.drawing]


def in_a_row(logs: Sequence[Log]) -> Log:
    """Joins the logs of trainings that went on from one another: their steps are counted on.

    Lines without a step, which no curve shows, are left out.
    """
    joined: list[Mapping[str, Any]] = []
    for log in logs:
        before = max((line["step"] for line in joined), default=0)
        numbered = (line for line in log if isinstance(line.get("step"), int | float))
        joined += [{**line, "step": before + line["step"]} for line in numbered]
    return joined


def _points(log: Log, key: str) -> list[tuple[float, float]]:
    """Reads one curve of a log; lines that lack the number, or hold none, are left out."""
    pairs = ((line.get("step"), line.get(key)) for line in log)
    return [
        (float(x), float(y))
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y)
    ]


def _last_level(label: str, log: Log, key: str) -> list[Level]:
    points = _points(log, key)
    return [Level(label, points[-1][1])] if points else []


def _held_out(points: Sequence[tuple[float, float]]) -> list[Series]:
    return [Series(label="held out", points=points, colour="c1", dots=True)]


def _transformer_loss(log: Log, levels: list[Level]) -> Card:
    chart = line_chart(
        [
            Series(label="training", points=_points(log, "loss"), colour="c2"),
            *_held_out(_points(log, "val_loss")),
        ],
        title="Loss of the transformer over training",
        x_label="training step",
        y_label="loss, nat per token",
        levels=levels,
    )
    return Card("The transformer's loss", "On training and on held-out videos.", chart)


def _loss_by_share(log: Log, levels: list[Level]) -> Card:
    named = {key for line in log for key in line if re.fullmatch(r"loss/\D*\d+_\d+", key)}
    keys = sorted(key for key in named if _points(log, key))
    chart = line_chart(
        [
            Series(label=_share(key), points=_points(log, key), colour=f"s{index % 5 + 1}")
            for index, key in enumerate(keys)
        ],
        title="Loss of the transformer over training, by share of hidden tokens",
        x_label="training step",
        y_label="loss, nat per token",
        levels=levels,
    )
    about = "The more of a video is hidden, the harder the rest is to guess."
    return Card("… by share of hidden tokens", about, chart)


def _share(key: str) -> str:
    low, high = (int(part) for part in re.findall(r"\d+", key)[-2:])
    return f"{low}\N{EN DASH}{high}%"


def by_mask_ratio(metrics: Mapping[str, float], kind: str) -> list[tuple[float, float]]:
    """Returns (mask ratio, value) of all `token_loss` or `token_accuracy` numbers, in order."""
    matches = ((AT_MASK.fullmatch(key), value) for key, value in metrics.items())
    return sorted((int(m[2]) / 100, value) for m, value in matches if m and m[1] == kind)


def _by_mask_ratio(metrics: Mapping[str, float]) -> list[Card]:
    guesses = {"blind guess": "token_loss_uniform", "by frequency": "token_loss_frequency"}
    loss = line_chart(
        _held_out(by_mask_ratio(metrics, "loss")),
        title="Held-out loss over the share of hidden tokens",
        x_label="share of tokens hidden",
        y_label="loss, nat per token",
        levels=[Level(name, metrics[key]) for name, key in guesses.items() if key in metrics],
        percent="x",
    )
    accuracy = line_chart(
        _held_out(by_mask_ratio(metrics, "accuracy")),
        title="Share of right first guesses over the share of hidden tokens",
        x_label="share of tokens hidden",
        y_label="first guesses that are right",
        percent="xy",
    )
    return [
        Card("The finished transformer's loss", "On held-out videos.", loss),
        Card("… and how often its first guess is right", "On held-out videos.", accuracy),
    ]


def _tokenizer(log: Log) -> list[Card]:
    psnr = line_chart(
        _held_out(_points(log, "psnr")),
        title="PSNR of the tokenizer's reconstructions over training",
        x_label="training step",
        y_label="PSNR, dB",
        levels=_last_level("mean frame", log, "psnr_mean_frame"),
    )
    codebook_use = line_chart(
        _held_out(_points(log, "codebook_use")),
        title="Share of the codebook in use over training",
        x_label="training step",
        y_label="tokens in use",
        percent="y",
    )
    return [
        Card(
            "The tokenizer's reconstructions",
            "Likeness to held-out videos; dashed: a still picture of each clip's average frame.",
            psnr,
        ),
        Card(
            "… and its codebook",
            "Share of its tokens that occur in held-out videos.",
            codebook_use,
        ),
    ]


def along_the_video(metrics: Mapping[str, float]) -> list[Card]:
    """Draws distances from real videos along the video; nothing if windows are short."""
    cards = (
        Card(
            "FVD along the video",
            "Of 16 frames each: does a long video stay as good as it began?",
            line_chart(
                _along("fvd", metrics),
                title="FVD of 16 frames, along the video",
                x_label="first of the 16 frames",
                y_label="FVD",
            ),
        ),
        Card(
            "Fréchet distance along the video",
            "Of a quarter of each video to the same quarter of real ones.",
            line_chart(
                _along("frechet", metrics),
                title="Fréchet distance of a quarter of the video, along it",
                x_label="first frame of the quarter",
                y_label="Fréchet distance",
            ),
        ),
    )
    return [card for card in cards if card.drawing]


def _along(kind: Literal["fvd", "frechet"], metrics: Mapping[str, float]) -> list[Series]:
    """Returns a line for each set of videos: the distance from each of its frames on."""
    matches = [match for match in map(OVER_TIME.fullmatch, metrics) if match]
    lines = []
    for who, name in SETS.items():
        points = sorted(
            (float(match[3]), metrics[match[0]])
            for match in matches
            if match.groups()[:2] == (kind, who)
        )
        lines.append(Series(label=name, points=points, colour=COLOURS[who], dots=True))
    return lines


def distances_from_training(copying: Mapping[str, Any]) -> list[Card]:
    """Draws all distances in order, a line for each set; copies lie below the dashed line."""
    names = {"samples": "new videos", "real": "held-out real ones"}
    lines = []
    for who, distances in copying.get("distances", {}).items():
        places = [(rank + 0.5) / len(distances) for rank in range(len(distances))]
        points = list(zip(places, distances, strict=True))
        lines.append(Series(label=names[who], points=points, colour=COLOURS[who]))
    near = copying.get("near")
    chart = line_chart(
        lines,
        title="How far videos are from the nearest training clip",
        x_label="share of videos, nearest first",
        y_label="tokens that differ",
        levels=[] if near is None else [Level("near copies", near)],
        percent="xy",
    )
    about = "In tokens that differ from the nearest training clip."
    return [Card("How far from training", about, chart)] if chart else []
