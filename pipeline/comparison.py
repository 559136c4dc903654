"""Sets of videos that may fairly be compared, and how far they are from one another."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.metrics import (
    SSIM_RADIUS,
    frechet_distance,
    kernel_distance,
    psnr,
    squared_error,
    ssim,
    wasserstein_distance,
)

DISTANCES = ("motion", "frechet", "kernel", "motion_distance")
"""What `distances` returns."""


@dataclass(frozen=True)
class VideoSet:
    """What is kept of a set of videos: a few numbers each."""

    features: Float[np.ndarray, "N P"]
    """Pooled features of a network, one row per video."""
    motion: Float[np.ndarray, " N"]
    """Mean change from a frame to the next, in grey levels."""

    @staticmethod
    def joined(parts: Sequence["VideoSet"]) -> "VideoSet":
        """Returns all videos of all parts."""
        return VideoSet(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.motion for part in parts]),
        )

    def first(self, count: int) -> "VideoSet":
        """Returns the first `count` videos."""
        return VideoSet(self.features[:count], self.motion[:count])


def distances(reference: VideoSet, other: VideoSet) -> dict[str, float]:
    """Measures how far `other` is from `reference`, and how much it moves.

    Fréchet and kernel distance depend on how many videos there are, so numbers are comparable only
    between sets of equal size. Raises ValueError if they differ in size.
    """
    if len(reference.features) != len(other.features):
        raise ValueError(
            f"sets must be of equal size, got {len(reference.features)} and {len(other.features)}."
        )
    return {
        "motion": float(other.motion.mean()),
        "frechet": frechet_distance(reference.features, other.features),
        "kernel": kernel_distance(reference.features, other.features),
        "motion_distance": wasserstein_distance(reference.motion, other.motion),
    }


@dataclass
class ReconstructionErrors:
    """How far reconstructions are from their videos, gathered window by window."""

    squared: list[float] = field(default_factory=list)
    squared_mean_frame: list[float] = field(default_factory=list)
    """Of a still picture, the mean of a window's frames."""
    similarity: list[float] = field(default_factory=list)
    perceptual: list[float] = field(default_factory=list)
    """LPIPS, where there is a network for it."""

    def add(
        self, video: UInt8[np.ndarray, "T H W 3"], reconstruction: UInt8[np.ndarray, "T H W 3"]
    ) -> None:
        """Takes in one window. Frames smaller than SSIM's window count for PSNR only."""
        self.squared.append(squared_error(video, reconstruction))
        self.squared_mean_frame.append(float(video.var(axis=0, dtype=np.float64).mean()))
        if min(video.shape[1:3]) > 2 * SSIM_RADIUS:
            self.similarity.append(ssim(video, reconstruction))

    def summary(self) -> dict[str, float]:
        """Returns PSNR of the mean squared error, that of the mean frame, mean SSIM and LPIPS."""
        means = {
            "psnr": psnr(math.fsum(self.squared) / len(self.squared)),
            "psnr_mean_frame": psnr(math.fsum(self.squared_mean_frame) / len(self.squared)),
        }
        for key, values in (("ssim", self.similarity), ("lpips", self.perceptual)):
            if values:
                means[key] = math.fsum(values) / len(values)
        return means


def two_halves(videos: Sequence[str], *, limit: int, seed: int) -> tuple[list[int], list[int]]:
    """Chooses windows for two sets that share no video; `videos` names the video of each window.

    Each set holds up to `limit` windows: first one of every video of its half, then a second one,
    and so on, so that any beginning of it is as varied as can be.
    """
    draw = random.Random(seed)
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(videos):
        rows.setdefault(video, []).append(row)
    names = sorted(rows)
    draw.shuffle(names)
    for name in names:
        draw.shuffle(rows[name])
    first, second = (
        [
            row
            for turn in zip_longest(*(rows[name] for name in names[half::2]))
            for row in turn
            if row is not None
        ][:limit]
        for half in (0, 1)
    )
    return first, second
