"""The numbers of a report in words: those to begin with, distances as bars, and all others."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.charts import number
from pipeline.report.curves import COLOURS, by_mask_ratio
from pipeline.report.meanings import (
    AT_MASK,
    DISTANCES,
    MEANINGS,
    OVER_TIME,
    SETS,
    meaning_of,
)


@dataclass(frozen=True)
class Bar:
    """How far one set of videos is from real ones."""

    name: str
    colour: str
    """Class of the page's style that colours it."""
    width: str
    """Share of the longest bar, in per cent."""
    value: str


@dataclass(frozen=True)
class Distance:
    """A distance from real videos, with a bar for each set."""

    name: str
    meaning: str
    bars: list[Bar]


def headlines(metrics: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yields value, unit and meaning of the numbers to read first, beside what is usual."""
    if "psnr" in metrics:
        about = "Likeness of reconstructions to their videos (PSNR)."
        if "psnr_mean_frame" in metrics:
            about += f" A still picture of each clip has {metrics['psnr_mean_frame']:.1f}."
        yield f"{metrics['psnr']:.1f}", "dB", about
    if losses := by_mask_ratio(metrics, "loss"):
        hidden, loss = min(losses, key=lambda item: abs(item[0] - 0.5))
        about = f"Loss on held-out videos of which {hidden:.0%} are hidden."
        if "token_loss_uniform" in metrics:
            about += f" A blind guess has {metrics['token_loss_uniform']:.2f}."
        yield f"{loss:.2f}", "nat", about
    for key in ("fvd", "frechet"):
        if f"{key}_samples" in metrics:
            about = f"{DISTANCES[key][0]} of new videos from real ones."
            if f"{key}_real" in metrics:
                about += f" Real ones from one another: {number(metrics[f'{key}_real'])}."
            yield number(metrics[f"{key}_samples"]), "", about


def distances(metrics: Mapping[str, float]) -> list[Distance]:
    """Returns how far real videos, reconstructions and samples are from real videos."""
    measured = []
    for key, (name, meaning) in DISTANCES.items():
        values = {who: metrics[f"{key}_{who}"] for who in SETS if f"{key}_{who}" in metrics}
        if values:
            measured.append(Distance(name, meaning, _bars(values)))
    return measured


def _bars(values: Mapping[str, float]) -> list[Bar]:
    largest = max(*map(abs, values.values()), 1e-12)
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [
        Bar(
            name=SETS[who],
            colour=COLOURS[who],
            width=f"{max(0.0, value) / largest:.2%}",
            value=f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}"),
        )
        for who, value in values.items()
    ]


def other_numbers(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Returns name, value and meaning of each number that neither a bar nor a curve shows."""
    rows = []
    known = [key for key in MEANINGS if key in metrics]
    for key in [*known, *(key for key in metrics if key not in MEANINGS)]:
        start, _, end = key.rpartition("_")
        in_a_bar = start in DISTANCES and end in SETS
        if in_a_bar or AT_MASK.fullmatch(key) or OVER_TIME.fullmatch(key):
            continue
        name, unit, meaning = meaning_of(key)
        rows.append((name, _with_unit(metrics[key], unit), meaning))
    return rows


def _with_unit(value: float, unit: str) -> str:
    return f"{number(100 * value)}%" if unit == "%" else f"{number(value)} {unit}".rstrip()


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns names and values of nested mappings, as one list to read."""
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key} ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}".replace("_", " "), shown))
    return rows
