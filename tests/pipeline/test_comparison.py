import math

import numpy as np
import pytest

from pipeline.comparison import (
    DISTANCES,
    ReconstructionErrors,
    VideoSet,
    distances,
    two_halves,
)

VIDEOS = [f"v{video}" for video in range(7) for _ in range(5)]


def test_halves_share_no_video():
    halves = two_halves(VIDEOS, limit=99, seed=0)
    first, second = ({VIDEOS[row] for row in half} for half in halves)
    assert (len(first), len(second)) == (4, 3)
    assert not first & second


def test_halves_together_hold_every_window_once():
    first, second = two_halves(VIDEOS, limit=99, seed=0)
    assert sorted(first + second) == list(range(35))


def test_every_video_has_its_turn_before_one_comes_again():
    first, _ = two_halves(VIDEOS, limit=99, seed=0)
    for turn in range(5):
        assert len({VIDEOS[row] for row in first[4 * turn : 4 * turn + 4]}) == 4


def test_a_smaller_limit_keeps_the_beginning():
    whole, part = (two_halves(VIDEOS, limit=limit, seed=3) for limit in (99, 6))
    assert part == (whole[0][:6], whole[1][:6])


def test_the_seed_draws_the_halves():
    assert two_halves(VIDEOS, limit=9, seed=1) == two_halves(VIDEOS, limit=9, seed=1)
    assert two_halves(VIDEOS, limit=9, seed=1) != two_halves(VIDEOS, limit=9, seed=2)


def test_one_video_leaves_the_second_half_empty():
    first, second = two_halves(["a", "a", "a"], limit=2, seed=0)
    assert (len(first), second) == (2, [])


def test_distances_are_those_of_each_part():
    x = VideoSet(np.array([[-1.0], [0], [1]]), np.array([0.0, 0, 0]))
    y = VideoSet(np.array([[1.0], [3], [5]]), np.array([1.0, 2, 3]))
    found = distances(x, y)
    assert found["frechet"] == pytest.approx(10)
    assert found["motion_distance"] == pytest.approx(2)
    assert found["motion"] == pytest.approx(2)
    assert set(found) == set(DISTANCES)


def test_sets_are_joined_in_order():
    x = VideoSet(np.arange(6.0).reshape(3, 2), np.arange(3.0))
    joined = VideoSet.joined([x.first(1), x.first(2)])
    np.testing.assert_array_equal(joined.features, [[0, 1], [0, 1], [2, 3]])
    np.testing.assert_array_equal(joined.motion, [0, 0, 1])


def test_sets_of_unequal_size_are_not_compared():
    x = VideoSet(np.zeros((4, 2)), np.zeros(4))
    assert distances(x.first(3), x.first(3))["frechet"] == 0
    with pytest.raises(ValueError, match="equal size, got 4 and 3"):
        distances(x, x.first(3))


def test_reconstruction_errors_of_all_windows_make_one_psnr():
    video = np.stack([np.full((12, 12, 3), level, np.uint8) for level in (100, 102)])
    errors = ReconstructionErrors()
    errors.add(video, video + np.uint8(3))
    errors.add(video, video - np.uint8(1))
    found = errors.summary()
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / 5))
    assert found["psnr_mean_frame"] == pytest.approx(10 * math.log10(255**2 / 1))
    assert 0.99 < found["ssim"] < 1


def test_ssim_is_left_out_where_its_window_does_not_fit():
    errors = ReconstructionErrors()
    errors.add(np.zeros((2, 10, 10, 3), np.uint8), np.ones((2, 10, 10, 3), np.uint8))
    assert set(errors.summary()) == {"psnr", "psnr_mean_frame"}
