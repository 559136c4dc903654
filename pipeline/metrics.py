"""Numbers that say how good pictures, tokens and samples are: arrays in, float64 numbers out."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""Half of the Gaussian window of SSIM, which is 11 pixels wide."""
SSIM_STABILITY = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
KERNEL_ROWS = 1024
"""Rows of the kernel matrix that are held at a time."""
BLANK_LEVELS, BLANK_SHARE = 8, 0.001
"""Grey levels that noise of sensors and codecs seldom takes a value from its mean, and how seldom.

Noise of a standard deviation of 2.4 levels comes to that share, and a still picture of 64x64 pixels
in H.264 at a CRF of 28. The calmest of 66 real clips of the demo has 3%, tokens of its bare ground
that change at random for other such tokens 0.02%.
"""


def squared_error(x: UInt8[np.ndarray, "*shape"], y: UInt8[np.ndarray, "*shape"]) -> float:
    """Returns the mean squared difference of two pictures or videos, in squared grey levels."""
    _same_shape(x, y)
    return float(np.mean((x.astype(np.float64) - y) ** 2))


def psnr(squared_error: float) -> float:
    """Returns the peak signal-to-noise ratio of a mean squared error, in dB; infinite for 0."""
    return math.inf if squared_error == 0 else 10 * math.log10(255**2 / squared_error)


def ssim(x: UInt8[np.ndarray, "*T H W C"], y: UInt8[np.ndarray, "*T H W C"]) -> float:
    """Returns the structural similarity, at most 1: the mean over frames, channels and places.

    As published (Wang et al., 2004): 11-pixel Gaussian window of sigma 1.5, K1 0.01, K2 0.03,
    only where the whole window lies inside the picture.
    """
    _same_shape(x, y)
    height, width = x.shape[-3:-1]
    if min(height, width) <= 2 * SSIM_RADIUS:
        raise ValueError(f"SSIM needs at least 11x11 pixels, got {width}x{height}.")
    down, across = _window_matrix(height), _window_matrix(width).T

    def local_mean(values: Float[np.ndarray, "*T C H W"]) -> Float[np.ndarray, "*T C h w"]:
        averaged: np.ndarray = down @ values @ across
        return averaged

    a = np.moveaxis(x, -1, -3).astype(np.float64)
    b = np.moveaxis(y, -1, -3).astype(np.float64)
    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = SSIM_STABILITY
    similar = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    similar *= (2 * covariance + c2) / (variances + c2)
    return float(similar.mean())


def _window_matrix(size: int) -> Float[np.ndarray, "valid size"]:
    """Returns the matrix that averages a line of pixels with SSIM's window."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size - 2 * SSIM_RADIUS, size))
    for row in range(len(matrix)):
        matrix[row, row : row + len(weights)] = weights
    return matrix


def frame_change(videos: UInt8[np.ndarray, "B T H W C"]) -> Float[np.ndarray, " B"]:
    """Returns each video's motion: the mean change from a frame to the next, in grey levels.

    A single frame does not move.
    """
    if videos.shape[1] < 2:
        return np.zeros(len(videos))
    later, earlier = videos[:, 1:].astype(np.int16), videos[:, :-1]
    change: np.ndarray = np.abs(later - earlier).mean(axis=(1, 2, 3, 4), dtype=np.float64)
    return change


def is_blank(videos: UInt8[np.ndarray, "B T H W C"]) -> Bool[np.ndarray, " B"]:
    """Says of each video whether nothing is seen to move: one colour or picture, with noise or not.

    That is so if at most `BLANK_SHARE` of its values are more than `BLANK_LEVELS` grey levels from
    the mean over time of their place and channel. A thing of 20 of 64x64 pixels takes 0.5% of them
    while it is seen, and 0.16% if it is seen in one channel alone. A single frame does not move.
    """
    away = np.abs(videos - videos.mean(axis=1, keepdims=True, dtype=np.float32))
    blank: np.ndarray = (away > BLANK_LEVELS).mean(axis=(1, 2, 3, 4)) <= BLANK_SHARE
    return blank


def pool_features(features: Float[np.ndarray, "B D t h w"]) -> Float[np.ndarray, "B P"]:
    """Pools features to a row per video: mean, mean absolute change in time, and in space.

    Changes are those between neighbours along time, and along height and width. Means alone do not
    see noise, nor whether anything moves: videos with a third of their tokens shuffled came out
    closer to real ones than good reconstructions did.
    """
    features = features.astype(np.float64)
    places = (2, 3, 4)
    parts = [features.mean(axis=places)]
    if features.shape[2] > 1:
        parts.append(np.abs(np.diff(features, axis=2)).mean(axis=places))
    across = [
        np.abs(np.diff(features, axis=a)).mean(places) for a in (3, 4) if features.shape[a] > 1
    ]
    if across:
        parts.append(np.sum(across, axis=0))
    return np.concatenate(parts, axis=1)


def frechet_distance(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    """Returns the squared Fréchet distance of two Gaussians with the features' moments.

    |mean(x) - mean(y)|² + tr(Cx + Cy - 2 (Cx Cy)^½), with unbiased covariances. The last trace is
    the sum of the singular values of A Bᵀ where Cx = AᵀA and Cy = BᵀB: no matrix root is taken, so
    fewer rows than features do no harm.
    """
    _two_sets(x, y)
    a, b = _covariance_factor(x), _covariance_factor(y)
    shift = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * shared))


def _covariance_factor(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "R D"]:
    """Returns a small A with AᵀA the unbiased covariance of the rows."""
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    return np.linalg.qr(centred / math.sqrt(len(x) - 1)).R


def kernel_distance(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    """Returns the squared maximum mean discrepancy with the kernel (x·y / D + 1)³.

    The estimate is unbiased, so around 0 for equal distributions, and may be negative.
    """
    _two_sets(x, y)
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _kernel_trace(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel_trace(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    y = y.astype(np.float64)
    blocks = (x[i : i + KERNEL_ROWS].astype(np.float64) for i in range(0, len(x), KERNEL_ROWS))
    return math.fsum(float(((rows @ y.T / x.shape[1] + 1) ** 3).sum()) for rows in blocks)


def _kernel_trace(x: Float[np.ndarray, "N D"]) -> float:
    return float((((x.astype(np.float64) ** 2).mean(axis=1) + 1) ** 3).sum())


def _two_sets(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], got {x.shape} and {y.shape}.")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance needs at least 2 rows a side, got {len(x)} and {len(y)}.")


def wasserstein_distance(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " M"]) -> float:
    """Returns the Wasserstein-1 distance of two sets of numbers: how far one has to be moved."""
    if not (len(x) and len(y)):
        raise ValueError(f"a distance needs at least 1 value a side, got {len(x)} and {len(y)}.")
    places = np.sort(np.concatenate([x, y]).astype(np.float64))
    below_x = np.searchsorted(np.sort(x), places[:-1], side="right") / len(x)
    below_y = np.searchsorted(np.sort(y), places[:-1], side="right") / len(y)
    return float(np.abs(below_x - below_y) @ np.diff(places))


def mann_whitney(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " M"]) -> float:
    """Returns the z of the Mann-Whitney test: below 0 if numbers of x tend to be the smaller ones.

    About normal with a deviation of 1 if both are drawn alike and apart from each other. Equal
    numbers share their mean rank; 0 if all are equal.
    """
    both = np.concatenate([x, y])
    ordered = np.sort(both)
    ranks = np.searchsorted(ordered, both) + np.searchsorted(ordered, both, side="right")
    if ranks.min() == ranks.max():
        return 0.0
    spread = ranks.std(ddof=1) * math.sqrt(len(x) * len(y) / len(both))
    return float((ranks[: len(x)].sum() - len(x) * ranks.mean()) / spread)


def roc_auc(negative: Float[np.ndarray, " N"], positive: Float[np.ndarray, " M"]) -> float:
    """Returns how often a score of the positive ones is the larger one; equal ones count half."""
    if not (len(negative) and len(positive)):
        raise ValueError(f"needs at least 1 score a side, got {len(negative)} and {len(positive)}.")
    ordered = np.sort(negative)
    below = sum(np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float(np.mean(below) / 2 / len(negative))


def fisher_exact(found: tuple[int, int], sizes: tuple[int, int]) -> float:
    """Returns how likely chance alone gives a first set so many finds, or more (one-sided).

    Two sets of `sizes` hold `found` finds; chance deals all of them out again.
    """
    n, m = sizes
    total = sum(found)
    ways = sum(
        math.comb(n, first) * math.comb(m, total - first)
        for first in range(found[0], min(n, total) + 1)
    )
    return ways / math.comb(n + m, total)


def token_counts(tokens: Int[np.ndarray, "*shape"], codebook_size: int) -> Int[np.ndarray, " K"]:
    """Counts how often each token occurs."""
    return np.bincount(tokens.reshape(-1), minlength=codebook_size)


@dataclass(frozen=True)
class CodebookUse:
    """How evenly the tokens of a codebook are used."""

    used: int
    """Tokens that occur."""
    dead: int
    """Tokens that never occur."""
    share: float
    """Part of the codebook that occurs."""
    perplexity: float
    """Number of tokens that, used evenly, would be as hard to guess."""
    bits: float
    """Entropy of one token, in bits."""


def codebook_use(counts: Int[np.ndarray, " K"]) -> CodebookUse:
    """Measures the use of a codebook from how often each token occurs."""
    shares = _shares(counts)
    shares = shares[shares > 0]
    bits = abs(float(-(shares * np.log2(shares)).sum()))  # One token only: 0, not -0.
    used = len(shares)
    return CodebookUse(used, len(counts) - used, used / len(counts), 2**bits, bits)


def total_variation(x: Int[np.ndarray, " K"], y: Int[np.ndarray, " K"]) -> float:
    """Returns the total variation distance of two token histograms, 0 … 1.

    It is the share of tokens that would have to be another one for the histograms to agree.
    """
    _same_shape(x, y)
    return float(np.abs(_shares(x) - _shares(y)).sum() / 2)


def frequency_loss(known: Int[np.ndarray, " K"], held_out: Int[np.ndarray, " K"]) -> float:
    """Returns the cross-entropy, in nats, of guessing held-out tokens by their frequency alone.

    Frequencies are those of `known`, with one more of each so that none is impossible.
    """
    _same_shape(known, held_out)
    return float(-(_shares(held_out) * np.log(_shares(known + 1))).sum())


def _shares(counts: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    total = counts.sum()
    if total == 0:
        raise ValueError("a histogram needs at least one token, got none.")
    shares: np.ndarray = counts / total
    return shares


def _same_shape(x: Shaped[np.ndarray, "..."], y: Shaped[np.ndarray, "..."]) -> None:
    if x.shape != y.shape:
        raise ValueError(f"shapes must be equal, got {x.shape} and {y.shape}.")
