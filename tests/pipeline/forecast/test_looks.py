"""Still and near-duplicate clips."""

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.looks import LEVELS, duplicates, is_still, look_at_video
from pipeline.video.synthetic import moving_shapes
from tests.helpers.film import picture, write_film


def test_a_clip_is_still_if_no_place_changes() -> None:
    looks = np.full((4, 16, 16), 100, np.uint8)
    looks[2] += LEVELS
    assert is_still(looks)
    looks[1, 5, 7] -= 1
    assert not is_still(looks)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_duplicates_are_those_of_comparing_all(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    kinds = draw.integers(60, 200, size=(4, 4, 16, 16))
    clips = [
        (kinds[kind] + draw.integers(-4, 5, size=(4, 16, 16))).astype(np.uint8)
        for kind in draw.integers(4, size=count)
    ]
    first: dict[int, int] = {}
    for early, late in itertools.combinations(range(count), 2):
        apart = np.abs(clips[early].astype(int) - clips[late]).max()
        if apart <= LEVELS:
            first.setdefault(late, early)
    assert duplicates(clips) == sorted((early, late) for late, early in first.items())


def test_encodings_of_one_film_look_alike_and_other_films_do_not(tmp_path: Path) -> None:
    one, other = (list(moving_shapes(40, 128, seed=seed)) for seed in (0, 1))
    write_film(tmp_path / "a.mp4", one, "libx264", options={"crf": "18"})
    write_film(tmp_path / "b.mkv", one, "mpeg4", options={"b": "4000000"})
    write_film(tmp_path / "c.mp4", other, "libx264", options={"crf": "18"})
    write_film(tmp_path / "d.mp4", [picture(0)] * 40, "libx264")
    looks = [look_at_video(path) for path in sorted(tmp_path.iterdir())]
    assert all(seen is not None for seen in looks)
    assert duplicates([seen for seen in looks if seen is not None]) == [(0, 1)]
    assert [is_still(seen) for seen in looks if seen is not None] == [False] * 3 + [True]
