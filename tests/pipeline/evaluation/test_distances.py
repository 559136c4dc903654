import math
from itertools import product

import numpy as np
import pytest

from pipeline.evaluation.distances import (
    DISTANCES,
    ReconstructionErrors,
    VideoSet,
    along,
    distances,
    see,
    stretches_of,
    two_halves,
)
from pipeline.video.tiles import ExtractConfig, tiles

NONE = np.empty((0, 3, 1))
"""Of videos that are too short for stretches."""


def halves_of(videos, *, limit, seed):
    return two_halves(videos, [0] * len(videos), span=16, limit=limit, seed=seed)


VIDEOS = [f"v{video}" for video in range(7) for _ in range(5)]


def test_halves_share_no_video():
    halves = halves_of(VIDEOS, limit=99, seed=0)
    first, second = ({VIDEOS[row] for row in half} for half in halves)
    assert (len(first), len(second)) == (4, 3)
    assert not first & second


def test_halves_together_hold_every_window_once():
    first, second = halves_of(VIDEOS, limit=99, seed=0)
    assert sorted(first + second) == list(range(35))


def test_every_video_has_its_turn_before_one_comes_again():
    first, _ = halves_of(VIDEOS, limit=99, seed=0)
    for turn in range(5):
        assert len({VIDEOS[row] for row in first[4 * turn : 4 * turn + 4]}) == 4


def test_a_smaller_limit_keeps_the_beginning():
    whole, part = (halves_of(VIDEOS, limit=limit, seed=3) for limit in (99, 6))
    assert part == (whole[0][:6], whole[1][:6])


def test_the_seed_draws_the_halves():
    assert halves_of(VIDEOS, limit=9, seed=1) == halves_of(VIDEOS, limit=9, seed=1)
    assert halves_of(VIDEOS, limit=9, seed=1) != halves_of(VIDEOS, limit=9, seed=2)


def overlap(one, two):
    """Says whether two windows (source, box, first frame) of 16 frames share a pixel."""
    (scene_1, box_1, start_1), (scene_2, box_2, start_2) = one, two
    far_apart = any(box_1[i] >= box_2[i + 2] or box_2[i] >= box_1[i + 2] for i in (0, 1))
    return scene_1 == scene_2 and abs(start_1 - start_2) < 16 and not far_apart


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("clip_frames", [24, None])
def test_overlapping_tiles_share_no_pixel_with_the_other_half(sources, clip_frames):
    boxes = tiles(60, 40, ExtractConfig(tile=20, tile_hop=10, clip_frames=clip_frames))
    videos, starts, windows = [], [], []
    for source, (suffix, box), first in product("ab"[:sources], boxes.items(), range(0, 81, 8)):
        clip = first // clip_frames * clip_frames if clip_frames else 0
        if clip_frames and first + 16 > clip + clip_frames:
            continue  # A window stays inside its clip.
        videos.append(f"test/{source}{suffix}" + (f"-f{clip:05d}" if clip_frames else ""))
        starts.append(first - clip)
        windows.append((source, box, first))
    first, second = two_halves(videos, starts, span=16, limit=999, seed=0)
    for one, two in product(first, second):
        assert not overlap(windows[one], windows[two])
    assert min(len(first), len(second)) >= len(videos) / 4


def test_windows_of_one_video_are_of_different_times():
    first, second = two_halves(["v"] * 50, range(50), span=16, limit=99, seed=0)
    assert (len(first), len(second)) == (17, 18)  # The others lie across the cut.
    assert max(first) + 16 <= min(second)


def test_windows_that_all_overlap_leave_the_second_half_empty():
    first, second = two_halves(["a", "a", "a"], [0, 1, 2], span=4, limit=2, seed=0)
    assert (len(first), second) == (2, [])


def test_distances_are_those_of_each_part():
    x = VideoSet(np.array([[-1.0], [0], [1]]), np.array([0.0, 0, 0]), NONE)
    y = VideoSet(np.array([[1.0], [3], [5]]), np.array([1.0, 2, 3]), NONE)
    found = distances(x, y)
    assert found["frechet"] == pytest.approx(10)
    assert found["motion_distance"] == pytest.approx(2)
    assert found["motion"] == pytest.approx(2)
    assert set(found) == set(DISTANCES)


def test_sets_are_joined_in_order():
    x = VideoSet(np.arange(6.0).reshape(3, 2), np.arange(3.0), np.arange(6.0).reshape(2, 3, 1))
    joined = VideoSet.joined([x.first(1), x.first(2)])
    np.testing.assert_array_equal(joined.features, [[0, 1], [0, 1], [2, 3]])
    np.testing.assert_array_equal(joined.motion, [0, 0, 1])
    np.testing.assert_array_equal(joined.stretches[..., 0], [[0, 0, 1], [3, 3, 4]])


def test_sets_of_unequal_size_are_not_compared():
    x = VideoSet(np.zeros((4, 2)), np.zeros(4), NONE)
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
    assert set(errors.summary()) == {
        *("psnr", "psnr_mean_frame", "psnr_moving", "psnr_moving_mean_frame"),
        *("flicker_real", "flicker_reconstructions"),
    }


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
    distances = along(see(features, videos), see(worse, videos))
    assert distances[:3] == pytest.approx([0, 0, 0], abs=1e-9)
    assert distances[3] > 100
    assert along(see(features[:, :, :4], videos), see(worse[:, :, :4], videos)) == []
