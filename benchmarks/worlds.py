"""Worlds of tokens whose rules are known exactly, to see whether a model has learned them.

A world lists every way in which its things can move, as a map of which role each place of a window
plays: background, a wall, a square. A lawful video is one such map with one code for each role, out
of the role's own codes. So the nearest lawful video to any grid of tokens can be found exactly.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIZE, CODES = 8, 64
"""Rows and columns of every world; what a token may be."""
MAPS_AT_ONCE = 4096
Maps = NDArray[np.uint8]
"""Roles [M T H W]."""


@dataclass(frozen=True)
class World:
    """The lawful videos of one kind."""

    maps: Maps
    """Which role each place plays, in every way to move."""
    codes: tuple[range, ...]
    """Codes of each role; of one video each role has one of them."""
    moving: tuple[int, ...]
    """Roles of what moves."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns."""
        _, t, h, w = self.maps.shape
        return t, h, w

    def draw(self, count: int, seed: int) -> NDArray[np.int64]:
        """Draws lawful videos [n T H W]: each movement and each code is as likely as any other."""
        generator = np.random.default_rng(seed)
        chosen = self.maps[generator.integers(len(self.maps), size=count)]
        codes = np.stack([generator.choice(codes, size=count) for codes in self.codes], axis=1)
        rows = np.arange(count)[:, None, None, None]
        return codes[rows, chosen].astype(np.int64)

    def distance(self, tokens: NDArray[np.int64]) -> float:
        """Returns the number of places that differ from the nearest lawful video [T H W].

        In sizes of what moves in it, at most 1: a video in which nothing moves has 1, a lawful one
        0. Of several that are as near, the one in which least moves counts.
        """
        is_code = np.eye(CODES, dtype=np.float32)[tokens.reshape(-1)]
        wrong, size = np.inf, 1
        for part in self._parts():
            kept = np.zeros(len(part), np.float32)
            moving = np.zeros(len(part), np.float32)
            for role, codes in enumerate(self.codes):
                plays = (part == role).astype(np.float32)
                kept += (plays @ is_code[:, codes.start : codes.stop]).max(1)
                moving += plays.sum(1) * (role in self.moving)
            for missed, things in zip(tokens.size - kept, moving, strict=True):
                if (missed, things) < (wrong, size):
                    wrong, size = float(missed), float(things)
        return min(1.0, wrong / size)

    def _parts(self) -> Iterator[NDArray[np.uint8]]:
        flat = self.maps.reshape(len(self.maps), -1)
        return (flat[i : i + MAPS_AT_ONCE] for i in range(0, len(flat), MAPS_AT_ONCE))

    def is_blank(self, tokens: NDArray[np.int64]) -> bool:
        """Says whether no token is one of what moves."""
        codes = [code for role in self.moving for code in self.codes[role]]
        return not np.isin(tokens, codes).any()


def bounce(first: int, speed: int, room: int, frames: int, *, each: int = 1) -> NDArray[np.int64]:
    """Returns where something is that moves once in `each` frames between 0 and `room` - 1."""
    period = max(1, 2 * (room - 1))
    places = first + speed * (np.arange(frames) // each)
    folded = places % period
    return np.minimum(folded, period - folded)


def _square(rows: NDArray[np.int64], columns: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Returns where a square is whose upper left corner takes these places [T H W]."""
    at = np.arange(SIZE)
    tall = (at >= rows[:, None]) & (at < rows[:, None] + side)
    wide = (at >= columns[:, None]) & (at < columns[:, None] + side)
    return tall[:, :, None] & wide[:, None, :]


def _paths(side: int, frames: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yields rows and columns of a square from every place at every speed, still ones too."""
    room = SIZE - side + 1
    starts, speeds = range(room), (-1, 0, 1)
    for row, column, down, right in itertools.product(starts, starts, speeds, speeds):
        yield bounce(row, down, room, frames), bounce(column, right, room, frames)


def _distinct(maps: Iterator[NDArray[np.uint8]]) -> Maps:
    """Leaves out movements that look the same."""
    found: Maps = np.unique(np.stack(list(maps)), axis=0)
    return found


def one_square() -> World:
    """A square of side 2 or 3 that moves straight, and is thrown back by the borders."""
    maps = (
        _square(*path, side).astype(np.uint8) for side in (2, 3) for path in _paths(side, frames=8)
    )
    return World(_distinct(maps), (range(8), range(8, CODES)), moving=(1,))


def wrapping_square() -> World:
    """A square that leaves at one border and comes back at the other, by up to 2 places a frame."""

    def maps() -> Iterator[NDArray[np.uint8]]:
        starts, speeds = range(SIZE), range(-2, 3)
        for side in (2, 3):
            for row, column, down, right in itertools.product(starts, starts, speeds, speeds):
                tall = _wrapped(row + down * np.arange(8), side)
                wide = _wrapped(column + right * np.arange(8), side)
                yield (tall[:, :, None] & wide[:, None, :]).astype(np.uint8)

    return World(_distinct(maps()), (range(8), range(8, CODES)), moving=(1,))


def _wrapped(first: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Returns which places are taken by what begins at `first` and goes on around [T S]."""
    return (np.arange(SIZE) - first[:, None]) % SIZE < side


def two_squares() -> World:
    """Two squares, one of which goes sideways, and hides the other, which goes up and down."""

    def maps() -> Iterator[NDArray[np.uint8]]:
        for front, back in itertools.product((2, 3), repeat=2):
            straight = range(SIZE - front + 1), range(SIZE - back + 1)
            across, along = (list(itertools.product(room, room, (-1, 1))) for room in straight)
            for (row, column, right), (top, left, down) in itertools.product(across, along):
                ahead = _square(np.full(8, row), bounce(column, right, SIZE - front + 1, 8), front)
                behind = _square(bounce(top, down, SIZE - back + 1, 8), np.full(8, left), back)
                yield np.where(ahead, 1, 2 * behind).astype(np.uint8)

    return World(_distinct(maps()), (range(8), range(8, 36), range(36, CODES)), moving=(1, 2))


WALL = 3
"""The first column of the wall of `hidden_square`, which reaches to the right border."""


def hidden_square() -> World:
    """A square that goes behind a wall for 14 of 32 frames, and comes back in its colour."""

    def maps() -> Iterator[NDArray[np.uint8]]:
        room = SIZE - 1
        for row, phase in itertools.product(range(room), range(2 * (room - 1))):
            columns = bounce(phase, 1, room, 32, each=2)
            roles = _square(np.full(32, row), columns, 2).astype(np.uint8)
            roles[:, :, WALL:] = 2
            yield roles

    return World(_distinct(maps()), (range(7), range(8, CODES), range(7, 8)), moving=(1,))


def two_colours() -> World:
    """A square in 32 frames that changes between two colours whenever it is thrown back."""

    def maps() -> Iterator[NDArray[np.uint8]]:
        for side in (2, 3):
            for rows, columns in _paths(side, frames=32):
                turned = _turns(rows) | _turns(columns)
                colour = 1 + np.cumsum(turned) % 2
                yield (_square(rows, columns, side) * colour[:, None, None]).astype(np.uint8)

    return World(_distinct(maps()), (range(8), range(8, 36), range(36, CODES)), moving=(1, 2))


def _turns(places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Says in which frames something begins to go the other way."""
    steps = np.diff(places, prepend=places[0])
    steps[0] = steps[1]
    return np.diff(steps, prepend=steps[0]) != 0


WORLDS: dict[str, Callable[[], World]] = {
    "one-square": one_square,
    "wrapping-square": wrapping_square,
    "two-squares": two_squares,
    "hidden-square": hidden_square,
    "two-colours": two_colours,
}


@cache
def world(name: str) -> World:
    """Returns a world by its name, built once."""
    return WORLDS[name]()
