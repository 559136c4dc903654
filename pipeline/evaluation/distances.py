"""How far sets of videos are from one another, and reconstructions from their videos."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline.metrics import (
    SSIM_RADIUS,
    frame_change,
    frechet_distance,
    is_blank,
    kernel_distance,
    pool_features,
    psnr,
    squared_error,
    ssim,
    wasserstein_distance,
)

DISTANCE_KEYS = ("motion", "blank", "frechet", "kernel", "motion_distance")
"""What `distances` returns."""
PSNR_KEYS = ("psnr", "psnr_mean_frame", "psnr_moving", "psnr_moving_mean_frame")
FLICKER_KEYS = ("flicker_real", "flicker_reconstructions")
RECONSTRUCTION_KEYS = (*PSNR_KEYS, *FLICKER_KEYS, "ssim")
"""What `ReconstructionErrors.summary` returns, with `lpips` where there is a network for it."""
STRETCHES, MIN_LATENT_FRAMES = 4, 2
"""Into how many stretches long videos are cut, and how many latent frames each has at least."""


@dataclass(frozen=True)
class VideoSet:
    """What is kept of a set of videos: a few numbers each."""

    features: Float[np.ndarray, "N P"]
    """Pooled features of a network, one row per video."""
    motion: Float[np.ndarray, " N"]
    """Mean change from a frame to the next, in grey levels."""
    blank: Bool[np.ndarray, " N"]
    """Whether nothing is seen to move."""
    stretches: Float[np.ndarray, "S N P"]
    """Pooled features of stretches of each video, from its start to its end; S 0 if it is short."""

    @staticmethod
    def of(
        features: Float[np.ndarray, "B D t h w"], videos: UInt8[np.ndarray, "B T H W C"]
    ) -> "VideoSet":
        """Keeps of videos, and of the features that a network has of them, what is compared."""
        pooled = pool_features(features)
        parts = [pool_features(features[:, :, part]) for part in stretches_of(features.shape[2])]
        stretches = np.stack(parts) if parts else np.empty((0, *pooled.shape))
        return VideoSet(pooled, frame_change(videos), is_blank(videos), stretches)

    @staticmethod
    def joined(parts: Sequence["VideoSet"]) -> "VideoSet":
        """Returns all videos of all parts."""
        return VideoSet(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.motion for part in parts]),
            np.concatenate([part.blank for part in parts]),
            np.concatenate([part.stretches for part in parts], axis=1),
        )

    def first(self, count: int) -> "VideoSet":
        """Returns the first `count` videos."""
        return VideoSet(
            self.features[:count],
            self.motion[:count],
            self.blank[:count],
            self.stretches[:, :count],
        )


def stretches_of(latent_frames: int) -> list[slice]:
    """Cuts a video into stretches, in latent frames; a short one into none."""
    if latent_frames < STRETCHES * MIN_LATENT_FRAMES:
        return []
    edges = [latent_frames * number // STRETCHES for number in range(STRETCHES + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def frechet_along(reference: VideoSet, other: VideoSet) -> list[float]:
    """Returns the Fréchet distance of each stretch of videos from the same stretch of others."""
    pairs = zip(reference.stretches, other.stretches, strict=True)
    return [frechet_distance(x, y) for x, y in pairs]


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
        "blank": float(other.blank.mean()),
        "frechet": frechet_distance(reference.features, other.features),
        "kernel": kernel_distance(reference.features, other.features),
        "motion_distance": wasserstein_distance(reference.motion, other.motion),
    }


MOVING, STILL = 0.05, 0.5
"""Shares of a video's places."""


@dataclass
class ReconstructionErrors:
    """How far reconstructions are from their videos, gathered window by window."""

    squared: list[float] = field(default_factory=list)
    squared_mean_frame: list[float] = field(default_factory=list)
    """Of a still picture, the mean of a window's frames."""
    moving: list[float] = field(default_factory=list)
    moving_mean_frame: list[float] = field(default_factory=list)
    """The same where the video moves: at the `MOVING` places that change most in time."""
    flicker: list[tuple[float, float]] = field(default_factory=list)
    """Change from frame to frame of video and reconstruction, at the `STILL` places of a video that
    change least."""
    similarity: list[float] = field(default_factory=list)
    perceptual: list[float] = field(default_factory=list)
    """LPIPS, where there is a network for it."""

    def add(
        self, video: UInt8[np.ndarray, "T H W 3"], reconstruction: UInt8[np.ndarray, "T H W 3"]
    ) -> None:
        """Takes in one window. Frames smaller than SSIM's window count for PSNR only."""
        self.squared.append(squared_error(video, reconstruction))
        variance = video.var(axis=0, dtype=np.float64).mean(-1)
        self.squared_mean_frame.append(float(variance.mean()))
        moves = variance >= np.quantile(variance, 1 - MOVING)
        self.moving.append(squared_error(video[:, moves], reconstruction[:, moves]))
        self.moving_mean_frame.append(float(variance[moves].mean()))
        if len(video) > 1:
            rests = variance <= np.quantile(variance, STILL)
            real, reconstructed = (
                np.abs(np.diff(x[:, rests].astype(np.int16), axis=0)).mean()
                for x in (video, reconstruction)
            )
            self.flicker.append((float(real), float(reconstructed)))
        if min(video.shape[1:3]) > 2 * SSIM_RADIUS:
            self.similarity.append(ssim(video, reconstruction))

    def summary(self) -> dict[str, float]:
        """Returns PSNRs of mean squared errors, and means of flicker, SSIM and LPIPS."""
        errors = (self.squared, self.squared_mean_frame, self.moving, self.moving_mean_frame)
        means = {
            key: psnr(math.fsum(values) / len(values))
            for key, values in zip(PSNR_KEYS, errors, strict=True)
        }
        if self.flicker:
            sums = map(math.fsum, zip(*self.flicker, strict=True))
            means |= {k: x / len(self.flicker) for k, x in zip(FLICKER_KEYS, sums, strict=True)}
        for key, values in (("ssim", self.similarity), ("lpips", self.perceptual)):
            if values:
                means[key] = math.fsum(values) / len(values)
        return means
