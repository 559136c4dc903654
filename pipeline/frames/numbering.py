"""Frame numbers -> runs that jump over nothing, whatever lies between one frame and the next."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence


def find_steps(numbers: Sequence[int]) -> set[int]:
    """Returns which differences of neighbouring `numbers`, which grow, lead to the next frame.

    1, if any two numbers follow one another. Otherwise the most common difference, of several the
    smallest: frames may be numbered 0, 5, 10. From 3 on one more or one less, whichever is more
    common, is the same step: rounded milliseconds of 30 frames a second differ by 33, 33, 34. But
    what occurs once only, or in less than half of all places, is no step; then it is 1.
    """
    counts = Counter(after - before for before, after in itertools.pairwise(numbers))
    if 1 in counts or not counts:
        return {1}
    common = max(counts, key=lambda step: (counts[step], -step))
    steps = {common}
    if common > 2:
        steps.add(max(common - 1, common + 1, key=lambda step: counts[step]))
    is_rare = counts[common] < 2 or sum(counts[step] for step in steps) < counts.total() / 2
    return {1} if is_rare else steps


def cut_runs(numbers: Sequence[int]) -> tuple[list[range], str]:
    """Cuts `numbers`, which grow, wherever they make no step; returns the places of each run.

    And what is to be said of them, if anything: steps other than 1, and jumps.
    """
    differences = [after - before for before, after in itertools.pairwise(numbers)]
    steps = find_steps(numbers)
    cuts = [place for place, step in enumerate(differences, 1) if step not in steps]
    said = []
    if steps != {1}:
        said.append(f"frames are numbered in steps of {_span(steps & set(differences))}")
    if cuts:
        jumps = [differences[place - 1] for place in cuts]
        said.append(
            f"frame numbers jump by {_span(jumps)}, and a jump ends a video; number frames "
            "consecutively if none is missing"
        )
    places = [0, *cuts, len(numbers)]
    return [range(*ends) for ends in itertools.pairwise(places)], "; ".join(said)


def _span(values: Collection[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
