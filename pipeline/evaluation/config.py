"""Which windows are compared, how many and how often, and what published protocols ask for."""

from dataclasses import dataclass, replace
from typing import Literal

FVD_FRAMES = 16
"""Frames of the windows along a longer one."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a published number was measured on; split and stride are those of the data set."""

    frames: int
    num_videos: int
    runs: int
    seed: int = 0
    hop: int = FVD_FRAMES


PROTOCOLS = {
    "mebt-16f": Protocol(frames=16, num_videos=2048, runs=10),
    "mebt-128f": Protocol(frames=128, num_videos=512, runs=5),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What samples and reconstructions are held against."""

    protocol: Literal["mebt-16f", "mebt-128f"] | None = None
    """Published protocol, which sets num_videos (2048, 512), runs (10, 5), seed and fvd_hop, and
    asks for windows of 16 or 128 frames; null: the values below."""
    split: Literal["test", "train"] = "test"
    """Real videos to compare with."""
    num_videos: int = 64
    """Windows on each side of a comparison, if there are as many."""
    runs: int = 1
    """Times that FVD and KVD are measured, with other real windows and other samples each time."""
    fvd_hop: int = FVD_FRAMES
    """Frames from one 16-frame window of FVD to the next along a longer window."""
    mask_ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """Shares of hidden tokens at which the model is measured."""
    batch_size: int = 8
    """Windows at once; changes speed and memory, and numbers by rounding only."""
    seed: int = 0
    """Draws the windows to compare with, and the masks."""

    def __post_init__(self) -> None:
        for name in ("runs", "fvd_hop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.runs > 1000:
            raise ValueError(f"runs must be at most 1000, got {self.runs}.")
        if self.num_videos < 2:
            raise ValueError(f"num_videos must be at least 2, got {self.num_videos}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if wrong := [ratio for ratio in self.mask_ratios if not 0 < ratio <= 1]:
            raise ValueError(f"mask_ratios must be in (0, 1], got {wrong[0]}.")
        if len(set(self.percents)) < len(self.mask_ratios):
            raise ValueError(f"mask_ratios must differ by a per cent, got {self.mask_ratios}.")

    @property
    def percents(self) -> list[int]:
        """Mask ratios as they stand in the names of numbers."""
        return [round(100 * ratio) for ratio in self.mask_ratios]

    def resolved(self) -> "EvaluateConfig":
        """Returns the values that a named protocol puts in place of ours."""
        if self.protocol is None:
            return self
        named = PROTOCOLS[self.protocol]
        return replace(
            self,
            num_videos=named.num_videos,
            runs=named.runs,
            seed=named.seed,
            fvd_hop=named.hop,
        )
