"""Hidden pixels are seen by nobody, kept ones come back exactly, and the seam is measured."""

import numpy as np
import pytest

from pipeline.editing.regions import hide, paste, seam

LENGTH, HEIGHT, WIDTH = 7, 5, 11


def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        256, size=(LENGTH, HEIGHT, WIDTH, 3), dtype=np.uint8
    )


def some(share: float) -> np.ndarray:
    return np.random.default_rng(1).random((LENGTH, HEIGHT, WIDTH)) < share


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_nothing_of_what_is_hidden_is_left(share: float) -> None:
    hidden = some(share)
    frames = clip()
    shown = hide(frames, hidden)
    assert (shown[~hidden] == frames[~hidden]).all()
    other = paste(clip(seed=9), frames, hidden)
    assert (hide(other, hidden) == shown).all()


def test_the_nearest_in_time_is_shown_then_in_the_row_then_in_the_column() -> None:
    hidden = np.zeros((LENGTH, HEIGHT, WIDTH), np.bool_)
    hidden[2:6] = True
    hidden[:, :2] = True
    hidden[:, 3, 4:8] = True
    frames = clip()
    shown = hide(frames, hidden)
    assert (shown[2:4, 4] == frames[1, 4]).all() and (shown[4:6, 4] == frames[6, 4]).all()
    assert (shown[1, 3, 4:6] == frames[1, 3, 3]).all() and (
        shown[1, 3, 6:8] == frames[1, 3, 8]
    ).all()
    assert (shown[6, :2] == frames[6, 2]).all()
    assert (hide(frames, np.ones_like(hidden)) == frames).all()


def test_kept_pixels_are_exact() -> None:
    hidden = some(0.3)
    pasted = paste(clip(seed=2), clip(), hidden)
    assert (pasted[~hidden] == clip()[~hidden]).all()
    assert (pasted[hidden] == clip(seed=2)[hidden]).all()


def test_a_seam_is_told_from_both_sides() -> None:
    video = np.zeros((LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    hidden = np.zeros(video.shape[:3], np.bool_)
    hidden[4:] = True
    video[1:4] = 10  # Kept: 0 10 10 10, that is a mean square of 100/3.
    video[4:6], video[6:] = 30, 31  # Across: 20. New: 30 30 31.
    found = seam(video, hidden)
    squares = {"kept": 100 / 3, "across": 400, "new": 1 / 2}
    for what, square in squares.items():
        assert found[f"time_{what}"] == pytest.approx(10 * np.log10(255**2 / square))
    assert [found[f"space_{what}"] for what in squares] == [None] * 3
    hidden[:] = False
    hidden[:, :, 3:] = True
    video[:] = np.where(np.arange(WIDTH) < 3, 50, 40)[:, None]
    found = seam(video, hidden)
    assert found["space_across"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert found["space_kept"] is found["space_new"] is found["time_across"] is None
