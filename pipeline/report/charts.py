"""Line charts as SVG, each in two sizes: for a wide page and for a phone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

Point = tuple[float, float]
Percent = Literal["", "x", "y", "xy"]
"""Axes to show in per cent."""

SIZES = {"wide": (520, 290), "narrow": (350, 260)}
"""Width and height in CSS pixels, so that text is as large on a phone as on a desk."""
TOP, BOTTOM = 30, 44
LABEL_GAP = 15
GLYPH_WIDTH = 7.4
"""Width of a letter of a label, at most, in pixels."""

# `Markup.format` escapes what it puts in.
SVG = Markup(
    '<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
    'aria-label="{title}" class="chart {kind}">{parts}</svg>'
)
TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
RULE = Markup('<line x1="{:.1f}" y1="{y:.1f}" x2="{:.1f}" y2="{y:.1f}" class="{}"></line>')
POLYLINE = Markup('<polyline points="{}" class="line {}"></polyline>')
DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="dot {}"><title>{}</title></circle>')


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
    percent: Percent = "",
) -> Markup:
    """Renders lines with their names at their ends as two SVGs, a wide and a narrow one.

    Points that are not finite are left out. Returns nothing if no point is left.
    """
    finite = [
        replace(line, points=[point for point in line.points if all(map(math.isfinite, point))])
        for line in series
    ]
    shown = [line for line in finite if line.points]
    if not shown:
        return Markup()
    labels = (title, x_label, y_label)
    return Markup().join(_svg(kind, shown, levels, labels, percent) for kind in SIZES)


@dataclass(frozen=True)
class _Plane:
    """Where numbers lie in a drawing: edges in pixels, and what is at them."""

    left: float
    right: float
    bottom: float
    x_range: Point
    y_ticks: Sequence[float]

    def at(self, x: float, y: float) -> Point:
        (x_low, x_high), y_low, y_high = self.x_range, self.y_ticks[0], self.y_ticks[-1]
        across = self.left + (x - x_low) / (x_high - x_low) * (self.right - self.left)
        return across, TOP + (y_high - y) / (y_high - y_low) * (self.bottom - TOP)


def _svg(
    kind: str,
    series: Sequence[Series],
    levels: Sequence[Level],
    labels: tuple[str, str, str],
    percent: Percent,
) -> Markup:
    width, height = SIZES[kind]
    title, x_label, y_label = labels
    plane = _plane(series, levels, (width, height), percent)
    # More points than half the pixels cannot be told apart.
    max_points = int(plane.right - plane.left) // 2
    series = [replace(line, points=thin(line.points, max_points)) for line in series]
    parts = [
        *_axes(plane, 6 if kind == "wide" else 4, percent),
        TEXT.format((plane.left + plane.right) / 2, height - 4, "middle", "axis", x_label),
        TEXT.format(0, 12, "start", "axis", y_label),
        *(_rule(plane, level.value, "level") for level in levels),
        *(part for line in series for part in _line(plane, line, percent)),
        *_names(plane, series, levels),
    ]
    return SVG.format(
        width=width, height=height, title=title, kind=kind, parts=Markup().join(parts)
    )


def _plane(
    series: Sequence[Series], levels: Sequence[Level], size: tuple[int, int], percent: Percent
) -> _Plane:
    """Leaves room for the words of the y axis on the left, and for names on the right."""
    width, height = size
    places = [x for line in series for x, _ in line.points]
    values = [y for line in series for _, y in line.points] + [level.value for level in levels]
    y_ticks = ticks(min(values), max(values), 5)
    words = _tick_words(y_ticks, "y" in percent)
    names = [line.label for line in series] + [level.label for level in levels]
    low, high = min(places), max(places)
    return _Plane(
        left=14 + GLYPH_WIDTH * max(map(len, words)),
        right=width - (14 + GLYPH_WIDTH * max(map(len, names))),
        bottom=height - BOTTOM,
        x_range=(low, high if high > low else low + 1),
        y_ticks=y_ticks,
    )


def _axes(plane: _Plane, num_x_ticks: int, percent: Percent) -> Iterator[Markup]:
    for tick, words in zip(plane.y_ticks, _tick_words(plane.y_ticks, "y" in percent), strict=True):
        _, y = plane.at(0, tick)
        yield _rule(plane, tick, "grid")
        yield TEXT.format(plane.left - 8, y + 4, "end", "tick", words)
    low, high = plane.x_range
    x_ticks = ticks(low, high, num_x_ticks)
    for tick, words in zip(x_ticks, _tick_words(x_ticks, "x" in percent), strict=True):
        if low <= tick <= high:
            x, _ = plane.at(tick, 0)
            yield TEXT.format(x, plane.bottom + 19, "middle", "tick", words)


def _rule(plane: _Plane, value: float, kind: str) -> Markup:
    _, y = plane.at(0, value)
    return RULE.format(plane.left, plane.right, kind, y=y)


def _line(plane: _Plane, line: Series, percent: Percent) -> Iterator[Markup]:
    places = [plane.at(*point) for point in line.points]
    yield POLYLINE.format(" ".join(f"{x:.1f},{y:.1f}" for x, y in places), line.colour)
    if line.dots:
        write_x, write_y = (_percent if axis in percent else number for axis in "xy")
        for place, (x, y) in zip(places, line.points, strict=True):
            tooltip = f"{line.label}: {write_y(y)} at {write_x(x)}"
            yield DOT.format(*place, line.colour, tooltip)


def _names(plane: _Plane, series: Sequence[Series], levels: Sequence[Level]) -> Iterator[Markup]:
    """Writes the name of each line at its end."""
    ends = [(plane.at(0, level.value)[1], level.label, "level") for level in levels]
    ends += [(plane.at(*line.points[-1])[1], line.label, line.colour) for line in series]
    places = spread([place for place, _, _ in ends], LABEL_GAP, plane.bottom)
    for y, (_, label, colour) in zip(places, ends, strict=True):
        yield TEXT.format(plane.right + 8, y + 4, "start", f"name {colour}", label)


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
