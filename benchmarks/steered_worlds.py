"""Worlds whose videos follow a label or actions, to see whether samples do what they are asked.

In both, a square of side 2 moves over a ground of one of two codes. What a label or an action says
is checked to the last token: a sample obeys, or it does not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.worlds import bounce
from pipeline.store.states import States

FRAMES, SIZE, SIDE = 8, 6, 2
ROOM = SIZE - SIDE + 1
"""Rows and columns that the square's upper left corner can take."""
GROUNDS, COLOURS = range(2), range(2, 6)
CODES = 6
Tokens = NDArray[np.int64]
Paths = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns of the corner in each frame."""

COURSES = {
    "east": (0, 1),
    "south": (1, 0),
    "west": (0, -1),
    "north": (-1, 0),
    "southeast": (1, 1),
    "northwest": (-1, -1),
    "southwest": (1, -1),
    "northeast": (-1, 1),
}
"""Label -> rows and columns that a square goes each frame, thrown back by the borders; every two
labels have a colour of their own."""
LABELS = tuple(COURSES)
MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""Action -> rows and columns that the square goes into the frame; none beyond a border."""
ACTION = "action"


@dataclass(frozen=True)
class Drawn:
    """Lawful videos, and what they were drawn by."""

    tokens: Tokens
    labels: list[str | None]
    actions: NDArray[np.float32] | None
    """[n, frames, 1]"""


def paint(path: Paths, ground: int, colour: int) -> Tokens:
    """Returns a video of a square on this path [T H W]."""
    at = np.arange(SIZE)
    rows, columns = path
    tall = (at >= rows[:, None]) & (at < rows[:, None] + SIDE)
    wide = (at >= columns[:, None]) & (at < columns[:, None] + SIDE)
    return np.where(tall[:, :, None] & wide[:, None, :], colour, ground).astype(np.int64)


def find(tokens: Tokens) -> tuple[Paths, int] | None:
    """Returns path and colour of the square of a video; None if it is not one square and ground."""
    ground, is_square = tokens.min(), tokens > GROUNDS[-1]
    if ground not in GROUNDS or not is_square.any(axis=(1, 2)).all():
        return None
    rows, columns = (is_square.any(axis=axis).argmax(axis=1) for axis in (2, 1))
    colour = int(tokens.max())
    if (rows >= ROOM).any() or (columns >= ROOM).any():
        return None
    drawn = paint((rows, columns), int(ground), colour)
    return ((rows, columns), colour) if np.array_equal(drawn, tokens) else None


def path_of(label: str, row: int, column: int) -> Paths:
    """Returns the path on which a label's square goes from a place."""
    down, right = COURSES[label]
    return bounce(row, down, ROOM, FRAMES), bounce(column, right, ROOM, FRAMES)


def colour_of(label: str) -> int:
    """Returns the colour of a label's square."""
    return COLOURS[LABELS.index(label) // 2]


def walk(row: int, column: int, actions: NDArray[np.int64]) -> Paths:
    """Returns the path on which actions lead from a place; the first acts on nothing."""
    places = [(row, column)]
    for action in actions[1:]:
        (row, column), (down, right) = places[-1], MOVES[action]
        places.append((min(max(row + down, 0), ROOM - 1), min(max(column + right, 0), ROOM - 1)))
    rows, columns = np.array(places).T
    return rows, columns


@dataclass(frozen=True)
class SteeredWorld:
    """Videos that follow a condition, and how to tell."""

    condition: str
    """As `model.conditions` names it."""
    states: States | None
    draw: Callable[[int, int], Drawn]
    """(count, seed) -> lawful videos: each label or action is as likely as any other."""
    lawful: Callable[[Tokens], bool]
    """Whether some label or some actions could have made a video [T H W]."""
    obeys: Callable[[Tokens, Drawn, int], bool]
    """Whether a video could have been made by what the n-th drawn one was."""


def _draw_labelled(count: int, seed: int) -> Drawn:
    generator = np.random.default_rng(seed)
    labels = [str(label) for label in generator.choice(LABELS, size=count)]
    starts = generator.integers(ROOM, size=(count, 2))
    grounds = generator.choice(GROUNDS, size=count)
    videos = [
        paint(path_of(label, *start), ground, colour_of(label))
        for label, start, ground in zip(labels, starts.tolist(), grounds, strict=True)
    ]
    return Drawn(np.stack(videos), list(labels), None)


def follows(tokens: Tokens, label: str) -> bool:
    """Says whether a video is one of a label's."""
    if (found := find(tokens)) is None:
        return False
    (rows, columns), colour = found
    path = path_of(label, int(rows[0]), int(columns[0]))
    return colour == colour_of(label) and all(map(np.array_equal, path, (rows, columns)))


def _draw_moved(count: int, seed: int) -> Drawn:
    generator = np.random.default_rng(seed)
    actions = generator.integers(len(MOVES), size=(count, FRAMES))
    starts = generator.integers(ROOM, size=(count, 2)).tolist()
    codes = generator.choice(GROUNDS, size=count), generator.choice(COLOURS, size=count)
    videos = [
        paint(walk(*start, mine), ground, colour)
        for start, mine, ground, colour in zip(starts, actions, *codes, strict=True)
    ]
    return Drawn(np.stack(videos), [None] * count, actions[..., None].astype(np.float32))


def is_walk(tokens: Tokens) -> bool:
    """Says whether some actions lead to a video."""
    if (found := find(tokens)) is None:
        return False
    steps = np.abs(np.diff(np.stack(found[0]), axis=1)).sum(axis=0)
    return bool((steps <= 1).all())


def moves_by(tokens: Tokens, actions: NDArray[np.float32]) -> bool:
    """Says whether these actions [T 1] lead to a video."""
    if (found := find(tokens)) is None:
        return False
    (rows, columns), _ = found
    path = walk(int(rows[0]), int(columns[0]), actions[:, 0].astype(np.int64))
    return all(map(np.array_equal, path, (rows, columns)))


def _moves(tokens: Tokens, drawn: Drawn, row: int) -> bool:
    assert drawn.actions is not None
    return moves_by(tokens, drawn.actions[row])


def _follows(tokens: Tokens, drawn: Drawn, row: int) -> bool:
    label = drawn.labels[row]
    assert label is not None
    return follows(tokens, label)


STEERED_WORLDS = {
    "labels": SteeredWorld(
        condition="label",
        states=None,
        draw=_draw_labelled,
        lawful=lambda tokens: any(follows(tokens, label) for label in LABELS),
        obeys=_follows,
    ),
    "actions": SteeredWorld(
        condition=f"{ACTION}:integers",
        states=States(FRAMES, {ACTION: 1}),
        draw=_draw_moved,
        lawful=is_walk,
        obeys=_moves,
    ),
}
