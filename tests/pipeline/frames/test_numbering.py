"""Frame numbers: any constant step is a video, and nothing jumps over a gap."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames.numbering import cut_runs, find_steps

STEPS = st.integers(1, 10**6)
STARTS = st.integers(0, 10**18)


@given(STARTS, STEPS, st.integers(3, 50))
def test_a_constant_step_is_one_run(start: int, step: int, count: int) -> None:
    runs, said = cut_runs(range(start, start + step * count, step))
    assert runs == [range(count)]
    assert said == ("" if step == 1 else f"frames are numbered in steps of {step}")


@given(STARTS, st.floats(3, 1e4), st.integers(4, 200))
def test_rounded_times_are_one_run(start: int, step: float, count: int) -> None:
    runs, _ = cut_runs([start + math.floor(step * n) for n in range(count)])
    assert runs == [range(count)]


@given(STARTS, STEPS, st.lists(st.integers(3, 9), min_size=2, max_size=5), st.integers(2, 9))
def test_a_gap_starts_a_run(start: int, step: int, lengths: list[int], missing: int) -> None:
    starts = itertools.accumulate(lengths, lambda at, length: at + length + missing, initial=0)
    places = [
        n for at, length in zip(starts, lengths, strict=False) for n in range(at, at + length)
    ]
    runs, said = cut_runs([start + step * place for place in places])
    assert [len(run) for run in runs] == lengths
    assert f"frame numbers jump by {step * (missing + 1)}, and a jump ends a video" in said


@given(st.sets(st.integers(0, 300), min_size=1).map(sorted))
def test_runs_hold_every_number_once_and_no_other_step(numbers: list[int]) -> None:
    runs, said = cut_runs(numbers)
    assert [place for run in runs for place in run] == list(range(len(numbers)))
    steps = find_steps(numbers)
    assert max(steps) - min(steps) <= 1
    differences = [b - a for a, b in itertools.pairwise(numbers)]
    for run in runs:
        assert all(differences[place] in steps for place in run[:-1])
        assert run.stop == len(numbers) or differences[run.stop - 1] not in steps
    assert bool(said) == (len(runs) > 1 or differences[:1] not in ([], [1]))


@given(st.sets(st.integers(0, 300), min_size=2).map(sorted))
def test_with_two_consecutive_numbers_the_step_is_one(numbers: list[int]) -> None:
    if any(b == a + 1 for a, b in itertools.pairwise(numbers)):
        assert find_steps(numbers) == {1}


@pytest.mark.parametrize(
    ("numbers", "lengths", "said"),
    [
        ([7], [1], ""),
        ([3, 9], [1, 1], "frame numbers jump by 6"),  # Seen once: no step.
        ([0, 33, 67, 100, 133], [5], "frames are numbered in steps of 33 to 34"),
        ([0, 5, 10, 20, 25], [3, 2], "steps of 5; frame numbers jump by 10"),
        ([0, 5, 10, 12, 15, 20], [3, 1, 2], "steps of 5; frame numbers jump by 2 to 3"),
        ([0, 2, 4, 7, 9], [3, 2], "steps of 2; frame numbers jump by 3"),
        ([0, 3, 14, 20, 24], [1] * 5, "frame numbers jump by 3 to 11"),
        ([0, 1, 2, 9, 16, 23], [3, 1, 1, 1], "frame numbers jump by 7"),
    ],
)
def test_steps_and_jumps_by_hand(numbers: list[int], lengths: list[int], said: str) -> None:
    runs, found = cut_runs(numbers)
    assert [len(run) for run in runs] == lengths
    assert said in found
    assert ("consecutively" in found) == (len(lengths) > 1)
