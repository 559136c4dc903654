import math

import numpy as np
import pytest

from pipeline.metrics import (
    codebook_use,
    fisher_exact,
    frame_change,
    frechet_distance,
    frequency_loss,
    is_blank,
    kernel_distance,
    mann_whitney,
    pool_features,
    psnr,
    roc_auc,
    squared_error,
    ssim,
    token_counts,
    total_variation,
    wasserstein_distance,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


# Pictures


def test_squared_error_does_not_wrap_around():
    assert squared_error(np.uint8([[0, 255]]), np.uint8([[255, 250]])) == (255**2 + 25) / 2


def test_psnr_of_one_level_everywhere():
    assert psnr(1.0) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert psnr(0.0) == math.inf
    assert math.isnan(psnr(math.nan))


def test_ssim_of_equal_pictures_is_one(rng):
    x = picture(rng, 2, 13, 17, 3)
    assert ssim(x, x) == pytest.approx(1, abs=1e-12)


def test_ssim_of_flat_pictures_compares_their_means():
    c1 = (0.01 * 255) ** 2
    x, y = np.full((13, 11, 3), 100, np.uint8), np.full((13, 11, 3), 50, np.uint8)
    assert ssim(x, y) == pytest.approx((2 * 5000 + c1) / (10000 + 2500 + c1), rel=1e-9)


def test_ssim_is_the_published_formula_at_every_place(rng):
    x, y = picture(rng, 14, 12, 2), picture(rng, 14, 12, 2)
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(2):
        for top in range(4):
            for left in range(2):
                a = x[top : top + 11, left : left + 11, channel].astype(float)
                b = y[top : top + 11, left : left + 11, channel].astype(float)
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * cov + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    assert ssim(x, y) == pytest.approx(np.mean(values), rel=1e-9)


def test_ssim_refuses_pictures_smaller_than_its_window():
    small = np.zeros((10, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="11x11 pixels, got 20x10"):
        ssim(small, small)


def test_motion_is_the_mean_change_between_neighbouring_frames():
    still = np.full((3, 2, 2, 3), 7, np.uint8)
    flicker = np.stack([np.full((2, 2, 3), level, np.uint8) for level in (0, 255, 245)])
    np.testing.assert_array_equal(frame_change(np.stack([still, flicker])), [0, (255 + 10) / 2])


def test_one_frame_does_not_move():
    np.testing.assert_array_equal(frame_change(np.ones((2, 1, 2, 2, 3), np.uint8)), [0, 0])


def with_noise(rng, video):
    """Adds what sensors and codecs do: a standard deviation of two grey levels."""
    return np.clip(video + rng.normal(0, 2, video.shape), 0, 255).round().astype(np.uint8)


def with_fish(video, channels=slice(None)):
    """Lets a thing of 4 x 5 places, brighter by 40 levels, cross the upper left 64 x 64."""
    video = video.copy()
    for frame, picture in enumerate(video):
        picture[30:34, 2 * frame : 2 * frame + 5, channels] += 40
    return video


@pytest.mark.parametrize(("size", "channels"), [((64, 64), 3), ((64, 64), 1), ((36, 130), 3)])
def test_a_video_without_motion_is_blank_and_one_with_a_small_thing_is_not(rng, size, channels):
    colour = np.full((24, *size, channels), 90, np.uint8)
    frozen = np.repeat(picture(rng, 1, *size, channels), 24, axis=0) // 2
    blank = np.stack([x for y in (colour, frozen) for x in (y, with_noise(rng, y))])
    assert is_blank(blank).all()
    assert not is_blank(np.stack([with_fish(video) for video in blank])).any()
    assert is_blank(blank[:, :1]).all()


def test_what_moves_in_one_channel_moves():
    water = np.full((24, 64, 64, 3), 90, np.uint8)
    assert is_blank(np.stack([water, with_fish(water, 2)])).tolist() == [True, False]


def test_motion_is_seen_if_one_value_of_a_thousand_is_farther_than_noise():
    # A place of 10 x 100 changes from one to the other level in the middle of the video.
    def videos(places, levels):
        video = np.full((4, 10, 100, 1), 90, np.uint8)
        video[:2, 0, :places], video[2:, 0, :places] = 90 - levels, 90 + levels
        return video

    cases = [(1, 9), (2, 8), (2, 9)]
    assert is_blank(np.stack([videos(*case) for case in cases])).tolist() == [True, True, False]


# Distances between sets


def test_pooled_features_hold_mean_and_change_in_time_and_space():
    t, h, w = np.meshgrid(np.arange(3), np.arange(2), np.arange(5), indexing="ij")
    features = np.stack([t + 10.0 * h - 100 * w, np.full(t.shape, 7.0)])[None]
    np.testing.assert_allclose(pool_features(features), [[1 + 5 - 200, 7, 1, 0, 110, 0]])


def test_pooled_features_leave_out_a_direction_without_neighbours():
    features = np.arange(3.0).reshape(1, 1, 3, 1, 1)
    np.testing.assert_allclose(pool_features(features), [[1, 1]])
    np.testing.assert_allclose(pool_features(features[:, :, :1]), [[0]])


def test_frechet_distance_of_one_feature_is_known():
    # Means 0 and 3, unbiased variances 1 and 4: (0 - 3)² + (1 - 2)².
    x, y = np.array([[-1.0], [0], [1]]), np.array([[1.0], [3], [5]])
    assert frechet_distance(x, y) == pytest.approx(10, rel=1e-12)


def test_frechet_distance_sees_correlation_alone(rng):
    # Two features of variance 1, correlated +1 and -1: tr(Cx Cy)^½ is 0, each trace is 2.
    line = np.array([-1.0, 0, 1])
    x, y = np.stack([line, line], 1), np.stack([line, -line], 1)
    assert frechet_distance(x, y) == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize("rows", [2, 5, 40])
def test_frechet_distance_of_equal_sets_is_zero_for_any_number_of_rows(rows, rng):
    x = rng.normal(size=(rows, 17)) * 100
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-8


def test_frechet_distance_does_not_lose_small_differences_far_from_zero(rng):
    x = rng.normal(size=(50, 3))
    assert frechet_distance(x + 1e6, x + 1e6 + [0.1, 0, 0]) == pytest.approx(0.01, rel=1e-6)


def test_frechet_distance_agrees_with_a_matrix_root(rng):
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    y = rng.normal(size=(70, 5)) @ rng.normal(size=(5, 5)) + 1
    product = np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(product).real).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() - 2 * root
    expected += np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_by_hand():
    # D = 2, kernel (x·y / 2 + 1)³: within x (0 + 1)³, within y (4 / 2 + 1)³, across 1, 1, 1 and 8.
    x, y = np.array([[0.0, 0], [2, 0]]), np.array([[0.0, 2], [1, 2]])
    assert kernel_distance(x, y) == pytest.approx(1 + 27 - 2 * (1 + 1 + 1 + 8) / 4, rel=1e-12)


def test_kernel_distance_is_the_same_in_blocks(rng, monkeypatch):
    x, y = rng.normal(size=(13, 3)), rng.normal(size=(11, 3))
    whole = kernel_distance(x, y)
    monkeypatch.setattr("pipeline.metrics.KERNEL_ROWS", 4)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_is_unbiased(rng):
    sets = rng.normal(size=(2, 400, 12, 3))
    values = [kernel_distance(x, y) for x, y in zip(*sets, strict=True)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_refuse_what_has_no_covariance(distance):
    with pytest.raises(ValueError, match="at least 2 rows a side, got 1 and 3"):
        distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 5\)"):
        distance(np.zeros((3, 2)), np.zeros((3, 5)))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([0, 1], [0, 1], 0),
        ([1, 0], [3, 2], 2),
        ([0, 0, 0, 4], [0], 1),
        ([0], [-1, 5], 3),
    ],
)
def test_wasserstein_distance_is_how_far_values_move(x, y, expected):
    assert wasserstein_distance(np.array(x), np.array(y)) == pytest.approx(expected, rel=1e-12)


# Chance


def test_roc_auc_counts_pairs_and_equal_ones_half(rng):
    negative, positive = rng.integers(0, 9, 20), rng.integers(3, 12, 30)
    pairs = [(x < y) + (x == y) / 2 for x in negative for y in positive]
    assert roc_auc(negative, positive) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert roc_auc(negative, negative) == 0.5
    assert (roc_auc(np.zeros(2), np.ones(3)), roc_auc(np.ones(3), np.zeros(2))) == (1, 0)
    with pytest.raises(ValueError, match="at least 1 score a side, got 0 and 3"):
        roc_auc(np.zeros(0), np.ones(3))


def test_mann_whitney_of_numbers_without_ties():
    # U is 1 of 6 pairs, 3 by chance, with variance 2 * 3 * (2 + 3 + 1) / 12.
    z = mann_whitney(np.array([1.0, 3]), np.array([2.0, 4, 5]))
    assert z == pytest.approx((1 - 3) / math.sqrt(3), rel=1e-12)
    assert mann_whitney(np.array([2.0, 4, 5]), np.array([1.0, 3])) == pytest.approx(-z, rel=1e-12)


def test_mann_whitney_shares_ranks_among_equal_numbers():
    # Ranks 2, 2 against 2, 4: sum 4, by chance 5, of ranks with variance 1.
    z = mann_whitney(np.array([1.0, 1]), np.array([1.0, 7]))
    assert z == pytest.approx((4 - 5) / math.sqrt(1), rel=1e-12)
    assert mann_whitney(np.zeros(3), np.zeros(4)) == 0


def test_mann_whitney_is_standard_normal_for_draws_of_one_kind(rng):
    values = [mann_whitney(rng.random(20), rng.random(30)) for _ in range(2000)]
    assert np.mean(values) == pytest.approx(0, abs=0.1)
    assert np.std(values) == pytest.approx(1, abs=0.1)


def test_fisher_exact_of_the_lady_who_tastes_tea():
    # Fisher, The Design of Experiments, 1935: 3 or more of 4 right by chance, 17 of 70 ways.
    assert fisher_exact((3, 1), (4, 4)) == pytest.approx(17 / 70, rel=1e-12)
    assert fisher_exact((4, 0), (4, 4)) == pytest.approx(1 / 70, rel=1e-12)
    assert fisher_exact((0, 0), (4, 4)) == 1


# Tokens


def test_token_counts_cover_the_whole_codebook():
    np.testing.assert_array_equal(token_counts(np.array([[0, 3], [3, 1]]), 5), [1, 1, 0, 2, 0])


def test_codebook_use_of_evenly_used_tokens():
    use = codebook_use(np.array([7, 0, 7, 7, 0, 7, 0]))
    assert (use.used, use.dead, use.share) == (4, 3, 4 / 7)
    assert use.perplexity == pytest.approx(4)
    assert use.bits == pytest.approx(2)


def test_one_single_token_carries_no_bits():
    use = codebook_use(np.array([0, 9]))
    assert (use.perplexity, use.bits, str(use.bits)) == (1, 0, "0.0")


def test_total_variation_is_the_share_that_would_have_to_change():
    assert total_variation(np.array([1, 1, 0]), np.array([2, 1, 1])) == pytest.approx(0.25)
    assert total_variation(np.array([5, 0]), np.array([0, 1])) == 1
    assert total_variation(np.array([1, 3]), np.array([2, 6])) == 0


def test_frequency_loss_guesses_by_count():
    # One more of each: 4, 1, 1 of 6. Held out: half token 0, half token 2, which was never seen.
    found = frequency_loss(np.array([3, 0, 0]), np.array([5, 0, 5]))
    assert found == pytest.approx(-(math.log(4 / 6) + math.log(1 / 6)) / 2)


@pytest.mark.parametrize("function", [total_variation, frequency_loss])
def test_histograms_must_match_and_hold_something(function):
    with pytest.raises(ValueError, match="shapes must be equal"):
        function(np.array([1, 2]), np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="at least one token"):
        function(np.array([1, 2]), np.array([0, 0]))
