"""Line charts as SVG, drawn twice: once for a wide page, once for a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.report.markup import Markup, element, join

Point = tuple[float, float]

SIZES = {"wide": (520, 290), "narrow": (350, 260)}
"""Width and height in CSS pixels, so that text is as large on a phone as on a desk."""
TOP, BOTTOM = 30, 44
LABEL_GAP = 15
GLYPH_WIDTH = 7.4
"""Width of a letter of a label, at most, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    colour: str
    """Class of the page's style that colours it."""
    dots: bool = False
    """Mark every point, with its numbers as a tooltip: for few points."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    value: float


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    percent: Literal["", "x", "y", "xy"] = "",
) -> Markup:
    """Draws lines with their names at their ends; `percent` names axes to show in per cent.

    Points that are not finite are left out. Returns nothing if no point is left.
    """
    finite = [
        Series(
            label=line.label,
            points=[p for p in line.points if math.isfinite(p[0]) and math.isfinite(p[1])],
            colour=line.colour,
            dots=line.dots,
        )
        for line in series
    ]
    shown = [line for line in finite if line.points]
    if not shown:
        return Markup()
    return join(
        *(
            _draw(shown, levels, (width, height), kind, title, x_label, y_label, percent)
            for kind, (width, height) in SIZES.items()
        )
    )


def _draw(
    series: Sequence[Series],
    levels: Sequence[Level],
    size: tuple[int, int],
    kind: str,
    title: str,
    x_label: str,
    y_label: str,
    percent: str,
) -> Markup:
    width, height = size
    values = [y for line in series for _, y in line.points] + [level.value for level in levels]
    places = [x for line in series for x, _ in line.points]
    y_ticks = ticks(min(values), max(values), 5)
    write_x, write_y = (_percent if axis in percent else number for axis in "xy")
    y_words = _tick_words(y_ticks, "y" in percent)
    left = 14 + GLYPH_WIDTH * max(map(len, y_words))
    names = [line.label for line in series] + [level.label for level in levels]
    right = 14 + GLYPH_WIDTH * max(map(len, names))
    x_low, x_high = min(places), max(places)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> Point:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        return across, TOP + (y_high - y) / (y_high - y_low) * (height - TOP - BOTTOM)

    def text(words: str, x: float, y: float, anchor: str, class_: str = "tick") -> Markup:
        return element("text", words, x=_px(x), y=_px(y), text_anchor=anchor, class_=class_)

    parts = []
    for tick, words in zip(y_ticks, y_words, strict=True):
        _, y = at(x_low, tick)
        parts.append(_line((left, y), (width - right, y), "grid"))
        parts.append(text(words, left - 8, y + 4, "end"))
    x_ticks = ticks(x_low, x_high, 6 if kind == "wide" else 4)
    for tick, words in zip(x_ticks, _tick_words(x_ticks, "x" in percent), strict=True):
        if x_low <= tick <= x_high:
            parts.append(text(words, at(tick, y_low)[0], height - BOTTOM + 19, "middle"))
    parts.append(text(x_label, (left + width - right) / 2, height - 4, "middle", "axis"))
    parts.append(text(y_label, 0, 12, "start", "axis"))

    ends: list[tuple[float, str, str]] = []
    for level in levels:
        _, y = at(x_low, level.value)
        parts.append(_line((left, y), (width - right, y), "level"))
        ends.append((y, level.label, "level"))
    for line in series:
        points = thin(line.points, int(width - left - right) // 2)
        path = " ".join(f"{_px(x)},{_px(y)}" for x, y in (at(*point) for point in points))
        parts.append(element("polyline", points=path, class_=f"line {line.colour}"))
        for point in points if line.dots else ():
            x, y = at(*point)
            words = f"{line.label}: {write_y(point[1])} at {write_x(point[0])}"
            tooltip = element("title", words)
            parts.append(
                element("circle", tooltip, cx=_px(x), cy=_px(y), r=3, class_=f"dot {line.colour}")
            )
        ends.append((at(*points[-1])[1], line.label, line.colour))
    for y, (_, label, colour) in zip(
        spread([end[0] for end in ends], LABEL_GAP, height - BOTTOM), ends, strict=True
    ):
        parts.append(text(label, width - right + 8, y + 4, "start", f"name {colour}"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
        class_=f"chart {kind}",
    )


def _line(start: Point, stop: Point, class_: str) -> Markup:
    (x1, y1), (x2, y2) = start, stop
    return element("line", x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2), class_=class_)


def _px(value: float) -> str:
    return f"{value:.1f}"


def number(value: float) -> str:
    """Writes a number as briefly as it can be read: 12,000, 31.4, 0.05, 2e-05."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{number(100 * value)}%"


def _tick_words(places: Sequence[float], percent: bool) -> list[str]:
    """Writes ticks with as many decimals as tell them apart."""
    factor, unit = (100, "%") if percent else (1, "")
    step = factor * (places[1] - places[0])
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{factor * place:,.{decimals}f}{unit}" for place in places]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers; the first is at most `low`, the last at least `high`."""
    if high <= low:
        low, high = low - max(1.0, abs(low)) / 2, low + max(1.0, abs(low)) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Returns at most `limit` points: means of neighbours, where there are more."""
    if len(points) <= limit:
        return list(points)
    edges = [len(points) * i // limit for i in range(limit + 1)]
    groups = [points[start:stop] for start, stop in pairwise(edges)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def spread(places: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Moves labels apart until neighbours are `gap` from one another, none below `lowest`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + gap)
    bound = lowest
    for index in reversed(order):
        moved[index] = min(moved[index], bound)
        bound = moved[index] - gap
    return moved
