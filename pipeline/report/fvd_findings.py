"""What a report says about FVD besides its bars: spread over runs, and course along the video."""

import re
from collections.abc import Mapping
from typing import Literal

from pipeline.report.charts import Series, line_chart
from pipeline.report.markup import Markup

OVER_TIME = re.compile(r"(fvd|frechet)_(\w+)_at_(\d+)")
"""Key of the FVD of the 16 frames from there on, or of the Fréchet distance of a stretch."""
OF_KIND = {
    "fvd": ("FVD of 16 frames, along the video", "first of the 16 frames", "FVD"),
    "frechet": (
        "Fréchet distance of a quarter of the video, along it",
        "first frame of the quarter",
        "Fréchet distance",
    ),
}
"""Title of the chart, and what its axes are."""
SPREAD = re.compile(r"(fvd|kvd)_([a-z]+)(_at_\d+)?_std")
"""Key of a standard deviation over runs."""


def over_time(
    metrics: Mapping[str, float],
    kind: Literal["fvd", "frechet"],
    sets: Mapping[str, str],
    colours: Mapping[str, str],
) -> Markup:
    """Draws a distance along the video, a line for each set; nothing if windows are short."""
    lines = []
    for who, name in sets.items():
        keys = [match for match in map(OVER_TIME.fullmatch, metrics) if match]
        found = [match for match in keys if match.groups()[:2] == (kind, who)]
        points = sorted((float(match[3]), metrics[match[0]]) for match in found)
        lines.append(Series(label=name, points=points, colour=colours[who], dots=True))
    title, where, what = OF_KIND[kind]
    return line_chart(lines, title=title, x_label=where, y_label=what)


def explain_spread(key: str, sets: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Returns name, unit and meaning of a standard deviation; None for any other key."""
    match = SPREAD.fullmatch(key)
    if not match:
        return None
    where = f", from frame {match[3].removeprefix('_at_')}" if match[3] else ""
    name = f"Spread of {match[1].upper()}, {sets.get(match[2], match[2])}{where}"
    return name, "", "Standard deviation from one run to another, with other videos each time."
