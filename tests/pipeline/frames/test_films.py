"""Frames of films: how often they are decoded, and what is known of all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pytest

from pipeline.frames.damage import decode
from pipeline.frames.films import Film, FilmFrame, films_rate
from pipeline.frames.images import read_frames
from pipeline.storage.tars import Member
from tests.helpers.film import picture


def fake(num_frames: int, shown: int, begun: list[int]) -> tuple[FilmFrame, ...]:
    """Returns the frames of a film that says it has so many frames, and shows others."""

    def read(*, as_stored: bool) -> Iterator[np.ndarray]:
        begun.append(0)
        for number in range(shown):
            begun[-1] += 1
            yield picture(number, 16, 16)

    made = Film(read, num_frames, "", 25.0, {})
    member = Member("a.tar", "v.mp4", 0, 0)
    return tuple(
        FilmFrame(member, PurePosixPath(f"v/v_{n:05d}.png"), made, n) for n in range(num_frames)
    )


def test_a_film_is_decoded_once_for_neighbours_and_no_further_than_needed() -> None:
    begun: list[int] = []
    frames = fake(20, 20, begun)
    other = fake(4, 4, begun)
    read_frames([*frames[3:9:2], *other], size=8)
    assert begun == [8, 4]


@pytest.mark.parametrize(
    ("shown", "said"),
    [(7, "v.mp4 ends after 7 of the 9 frames"), (10, "v.mp4 goes on after the 9 frames")],
)
def test_a_film_of_another_length_than_it_says_is_damaged(shown: int, said: str) -> None:
    begun: list[int] = []
    frames = fake(9, shown, begun)
    found = decode(frames, size=8, as_stored=False)
    assert isinstance(found, list) and len(found) == 1 and said in found[0]
    assert "`mebt extract --videos`" in found[0] and len(begun) == 1
    assert isinstance(decode(frames[:7], size=8, as_stored=False), np.ndarray)


@pytest.mark.parametrize(
    ("rates", "one"),
    [
        ((25.0, 25.2, 25.1), 25.1),
        ((24.0, 25.0, 30.0, 60.0), 25.0),
        ((25.0, None), None),
        ((2e6,), None),
        ((), None),
    ],
)
def test_films_have_a_rate_if_all_have(rates: tuple[float | None, ...], one: float | None) -> None:
    (frame,) = fake(1, 1, [])
    firsts = [replace(frame, film=replace(frame.film, rate=rate)) for rate in rates]
    assert films_rate(firsts) == one
    assert films_rate([*firsts, "image.png"]) is None
