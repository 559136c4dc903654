import math

import numpy as np
import pytest

from pipeline.evaluation.distances import (
    DISTANCE_KEYS,
    RECONSTRUCTION_KEYS,
    ReconstructionErrors,
    VideoSet,
    distances,
    frechet_along,
    stretches_of,
)

NONE = np.empty((0, 3, 1))
"""Of videos that are too short for stretches."""


def test_distances_are_those_of_each_part():
    x = VideoSet(np.array([[-1.0], [0], [1]]), np.array([0.0, 0, 0]), np.array([True] * 3), NONE)
    y = VideoSet(
        np.array([[1.0], [3], [5]]), np.array([1.0, 2, 3]), np.array([True, False, False]), NONE
    )
    found = distances(x, y)
    assert found["frechet"] == pytest.approx(10)
    assert found["motion_distance"] == pytest.approx(2)
    assert found["motion"] == pytest.approx(2)
    assert found["blank"] == pytest.approx(1 / 3)
    assert set(found) == set(DISTANCE_KEYS)


def test_sets_are_joined_in_order():
    x = VideoSet(
        np.arange(6.0).reshape(3, 2),
        np.arange(3.0),
        np.array([True, False, True]),
        np.arange(6.0).reshape(2, 3, 1),
    )
    joined = VideoSet.joined([x.first(1), x.first(2)])
    np.testing.assert_array_equal(joined.features, [[0, 1], [0, 1], [2, 3]])
    np.testing.assert_array_equal(joined.motion, [0, 0, 1])
    np.testing.assert_array_equal(joined.blank, [True, True, False])
    np.testing.assert_array_equal(joined.stretches[..., 0], [[0, 0, 1], [3, 3, 4]])


def test_sets_of_unequal_size_are_not_compared():
    x = VideoSet(np.zeros((4, 2)), np.zeros(4), np.ones(4, bool), NONE)
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
    assert set(errors.summary()) == {*RECONSTRUCTION_KEYS} - {"ssim"}


def test_what_moves_and_what_rests_are_measured_apart():
    video = np.full((4, 10, 10, 3), 100, np.uint8)
    video[1::2, :1, :5] = 140  # 5 of 100 places move, by 20 levels around their mean.
    made = video.copy()
    made[:, :1, :5] += 2
    made[1::2, 5:] += 3  # Half of the ground flickers.
    errors = ReconstructionErrors()
    errors.add(video, made)
    found = errors.summary()
    assert found["psnr_moving"] == pytest.approx(10 * math.log10(255**2 / 2**2))
    assert found["psnr_moving_mean_frame"] == pytest.approx(10 * math.log10(255**2 / 20**2))
    assert found["flicker_real"] == 0
    assert found["flicker_reconstructions"] == pytest.approx(3 * 50 / 95)


@pytest.mark.parametrize(("latent", "sizes"), [(7, []), (8, [2, 2, 2, 2]), (17, [4, 4, 4, 5])])
def test_long_videos_have_stretches(latent: int, sizes: list[int]):
    parts = stretches_of(latent)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(latent)[part]] == list(range(latent))[: sum(sizes)]


def test_quality_is_told_along_the_video():
    features = np.random.default_rng(0).normal(size=(6, 3, 8, 2, 2))
    videos = np.zeros((6, 32, 4, 4, 3), np.uint8)
    worse = features.copy()
    worse[:, :, 6:] += 10  # The last of four stretches.
    sets = VideoSet.of(features, videos), VideoSet.of(worse, videos)
    distances = frechet_along(*sets)
    assert distances[:3] == pytest.approx([0, 0, 0], abs=1e-9)
    assert distances[3] > 100
    short = (VideoSet.of(x[:, :, :4], videos) for x in (features, worse))
    assert frechet_along(*short) == []
