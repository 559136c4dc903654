"""Times of frames: mended, measured, and the frames that a wanted rate keeps."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.clock import Clock, Pace, at_rate

TICKS = {"exact": 0.0, "90 kHz": 1 / 90_000, "milliseconds": 1e-3}


def ticked(time: float, tick: float) -> float:
    return round(time / tick) * tick if tick else time


def kept(times: list[float], *, fps: float, rate: float) -> list[int]:
    return [
        frame
        for _, frame in at_rate(zip(times, range(len(times)), strict=True), fps=fps, rate=rate)
    ]


@pytest.mark.parametrize("tick", TICKS.values(), ids=TICKS)
@pytest.mark.parametrize("fps", [60, 50, 30, 30000 / 1001, 25, 24, 24000 / 1001, 15, 12, 10, 8, 1])
@pytest.mark.parametrize("rate", [60, 50, 30, 30000 / 1001, 25, 24, 15])
def test_as_many_frames_are_kept_as_ffmpeg_keeps_and_evenly(
    rate: float, fps: float, tick: float
) -> None:
    count = 120
    clock = Clock(rate, tick)
    times = [clock.mend(ticked(7 + n / rate, tick)) for n in range(count)]
    chosen = kept(times, fps=fps, rate=rate)
    every = max(1.0, rate / fps)
    assert abs(len(chosen) - math.floor(count / every + 0.5 + 1e-6)) <= 1  # FFmpeg's count.
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    assert steps <= {math.floor(every + 1e-9), math.ceil(every - 1e-9)}
    for due, number in enumerate(chosen):
        assert abs(number - due * every) <= 0.5 + 1e-6


@given(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=60), st.sampled_from([5.0, 30.0]))
def test_uneven_frames_fill_an_even_grid_with_the_nearest(gaps: list[float], fps: float) -> None:
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    chosen = kept(times, fps=fps, rate=1000)
    assert chosen == sorted(chosen)
    for due, number in enumerate(chosen):
        nearest = min(abs(time - due / fps) for time in times)
        assert abs(times[number] - due / fps) <= nearest + 1e-6
    assert abs(len(chosen) - (times[-1] + 0.001) * fps) < 1


def test_a_video_never_gets_more_frames_than_it_has() -> None:
    assert kept([n / 25 for n in range(40)], fps=30, rate=25) == list(range(40))


def test_a_gap_is_filled_with_what_was_shown() -> None:
    assert kept([0.0, 0.1, 0.5, 0.6], fps=10, rate=10) == [0, 1, 1, 1, 2, 2, 3]


def test_times_that_are_missing_are_counted_out() -> None:
    clock = Clock(20, 1e-6)
    assert [clock.mend(time) for time in (None, None, None)] == pytest.approx([0, 0.05, 0.1])
    assert clock.mended == {"missing": 3}


def test_a_new_beginning_goes_on_where_the_old_ended() -> None:
    clock = Clock(10, 1e-6)
    found = [clock.mend(time) for time in (5.0, 5.1, 6.5, 0.2, 0.3, 0.45)]
    assert found == pytest.approx([5.0, 5.1, 6.5, 6.6, 6.7, 6.85])
    assert clock.mended["started again"] == 1


@pytest.mark.parametrize("restarts", [True, False])
def test_a_leap_is_a_gap_unless_the_container_may_restart(restarts: bool) -> None:
    clock = Clock(10, 1e-6, restarts=restarts)
    found = [clock.mend(time) for time in (0.0, 0.1, 95_000.0, 95_000.1)]
    leap = 0.2 if restarts else 95_000.0
    assert found == pytest.approx([0.0, 0.1, leap, leap + 0.1])


def test_disorder_is_counted_out_and_time_never_stands_still() -> None:
    clock = Clock(10, 1e-6)
    found = [clock.mend(time) for time in (0.0, 0.3, 0.1, 0.2, 0.6, 0.4, 0.5)]
    assert all(after > before for before, after in itertools.pairwise(found))
    assert clock.mended["ran backwards"] == 4


@pytest.mark.parametrize("rate", [24, 30000 / 1001, 59.94])
def test_the_rounding_of_a_coarse_clock_is_undone(rate: float) -> None:
    clock, pace = Clock(rate, 1e-3), Pace(rate, 1e-3)
    times = [clock.mend(ticked(n / rate, 1e-3)) for n in range(200)]
    assert times == pytest.approx([n / rate for n in range(200)], abs=1e-9)
    for time in times:
        pace.see(time)
    assert (pace.rate(), pace.uneven()) == (rate, None)


def test_how_uneven_a_variable_rate_is() -> None:
    pace = Pace(30, 1e-4)
    for time in (0.0, 0.02, 0.04, 0.14, 0.16):
        pace.see(time)
    assert pace.rate() == pytest.approx(25)
    assert pace.uneven() == "20 to 100 ms from frame to frame, 40.0 on average"


def test_one_long_stop_makes_a_rate_variable() -> None:
    pace = Pace(10, 1e-4)
    for number in range(1000):
        pace.see(number / 10 + (0.5 if number > 600 else 0))
    assert str(pace.uneven()).startswith("100 to 600 ms")
