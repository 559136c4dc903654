"""Frames need not be square, and none is stretched."""

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import CheckpointError
from pipeline.frames.images import crop_resize
from pipeline.size import centre, check_size
from pipeline.store.window import Window


@pytest.mark.parametrize(
    ("frame", "size", "box"),
    [
        ((30, 20), 8, (5, 0, 25, 20)),
        ((20, 30), 8, (0, 5, 20, 25)),
        ((160, 90), (72, 128), (0, 0, 160, 90)),
        ((160, 90), (128, 72), (54, 0, 105, 90)),
        ((90, 160), (72, 128), (0, 54, 90, 105)),
        ((3, 500), (1, 4000), (0, 249, 3, 250)),
    ],
)
def test_the_largest_centre_of_a_shape_is_cut_out(frame, size, box) -> None:
    assert centre(*frame, size) == box


def test_a_circle_stays_a_circle() -> None:
    y, x = np.mgrid[:200, :300]
    disc = ((x - 150) ** 2 + (y - 100) ** 2 < 40**2) * np.uint8(255)
    for size in ((50, 100), (100, 50), 64):
        shown = np.asarray(crop_resize(Image.fromarray(disc).convert("RGB"), size))[..., 0] > 127
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert shown.shape == (64, 64)


def test_a_square_of_two_sides_is_one_of_one_side() -> None:
    assert check_size("size", (64, 64)) == 64
    assert check_size("size", (48, 64)) == (48, 64)
    for wrong in (0, (0, 8), (8, 5000), 5000):
        with pytest.raises(ValueError, match=r"size must be at (least 1|most 4096), got"):
            check_size("size", wrong)


@pytest.mark.parametrize("size", [None, 64, (48, 64)])
def test_a_model_says_of_which_size_its_windows_are(tmp_path, size) -> None:
    window = Window(4, 1, size, 8.0, False)
    assert Window.read(tmp_path, window.metadata()) == window


@pytest.mark.parametrize("said", ["48x", "48x64x3", "-1", "48x-2", "x"])
def test_an_impossible_size_is_refused(tmp_path, said: str) -> None:
    with pytest.raises(CheckpointError, match="window"):
        Window.read(tmp_path, {"size": said})
