import math
import re

import pytest

from pipeline.report.charts import Level, Series, line_chart, number, spread, thin, ticks

LINE = Series(label="held out", points=[(0, 6.0), (50, 3.0), (100, 2.5)], colour="c1", dots=True)


def draw(*series, **settings):
    return line_chart(series, title="Loss", x_label="step", y_label="nat", **settings)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1.9, 6.2, [1, 2, 3, 4, 5, 6, 7]),
        (0.011, 0.029, [0.01, 0.015, 0.02, 0.025, 0.03]),
        (-3, 4, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0, 3, -700, 1e-9])
def test_ticks_of_one_value_surround_it(value):
    found = ticks(value, value, 5)
    assert found[0] < value < found[-1]


def test_thinned_points_are_means_of_neighbours():
    assert thin([(0, 1), (2, 3), (4, 5), (6, 9)], 2) == [(1, 2), (5, 7)]
    assert thin([(0, 1), (2, 3)], 2) == [(0, 1), (2, 3)]


def test_labels_move_apart_and_stay_inside():
    assert spread([10, 50, 12], 15, 100) == [10, 50, 25]
    assert spread([95, 99], 15, 100) == [85, 100]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (31.44, "31.4"), (0.02, "0.02"), (2e-5, "2e-05")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_chart_is_drawn_for_desk_and_phone():
    assert re.findall(r'class="chart (\w+)"', draw(LINE)) == ["wide", "narrow"]


def test_every_point_lies_inside_its_drawing():
    svg = draw(LINE, levels=[Level("blind guess", 9.0)])
    for width, height, inside in re.findall(r'viewBox="0 0 (\d+) (\d+)"(.*?)</svg>', svg, re.S):
        points = re.search(r'polyline points="([^"]*)"', inside)[1].split()
        assert len(points) == 3
        for x, y in (map(float, point.split(",")) for point in points):
            assert 0 < x < float(width)
            assert 0 < y < float(height)


def test_larger_values_are_higher_up():
    first, second, third = re.search(r'polyline points="([^"]*)"', draw(LINE))[1].split()
    assert float(first.split(",")[1]) < float(second.split(",")[1]) < float(third.split(",")[1])


def test_dots_say_their_numbers():
    assert "<title>held out: 3 at 50</title>" in draw(LINE)
    assert "<title>held out: 300% at 50</title>" in draw(LINE, percent="y")
    assert "<title>" not in draw(Series(label="training", points=LINE.points, colour="c2"))


def test_ticks_tell_one_another_apart():
    level = Series(label="x", points=[(0, 0.0011), (1, 0.0024)], colour="c1")
    words = re.findall(r'text-anchor="end" class="tick">([^<]*)<', draw(level, percent="y"))
    assert words[: len(words) // 2] == ["0.10%", "0.15%", "0.20%", "0.25%"]
    words = re.findall(r'text-anchor="end" class="tick">([^<]*)<', draw(LINE))
    assert words[: len(words) // 2] == ["2", "3", "4", "5", "6"]


def test_levels_have_their_names():
    assert re.search(
        r'class="name level">blind guess<', draw(LINE, levels=[Level("blind guess", 6)])
    )


def test_points_without_a_number_are_left_out():
    broken = Series(label="x", points=[(0, math.nan), (1, 2.0), (2, math.inf)], colour="c1")
    assert draw(broken).count("polyline points") == 2
    assert "nan" not in draw(broken)
    assert draw(Series(label="x", points=[(0, math.nan)], colour="c1")) == ""
    assert draw() == ""


def test_one_single_point_can_be_drawn():
    assert "nan" not in draw(Series(label="x", points=[(5, 5)], colour="c1", dots=True))


def test_names_in_a_chart_are_text_and_never_elements():
    hostile = "<script>\"'&"
    line = Series(label=hostile, points=[(0, 1), (1, 2)], colour="c1", dots=True)
    svg = line_chart(
        [line],
        title=hostile,
        x_label=hostile,
        y_label=hostile,
        levels=[Level(hostile, 3)],
    )
    escaped = "&lt;script&gt;&#34;&#39;&amp;"
    # In each size: the title, two axes, two names, and a tooltip at each point.
    assert svg.count(escaped) == 2 * (1 + 2 + 2 + 2)
    assert svg.count("script") == svg.count(escaped)
    assert f'aria-label="{escaped}"' in svg
