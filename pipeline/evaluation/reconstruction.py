"""How much of footage survives a tokenizer: window by window, frame by frame, and a verdict."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from pipeline.evaluation.distances import ReconstructionErrors
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.sets import Clip
from pipeline.metrics import SSIM_RADIUS, CodebookUse, codebook_use, psnr, squared_error, ssim

MIN_GAIN = 3.0
"""PSNR in dB by which reconstructions of a fitting tokenizer are above a still picture, the mean of
a window's frames."""
RESTING, MIN_RESTING = 40.0, 30.0
"""Where that picture has so high a PSNR nothing moves, and reconstructions are to have this one."""
MIN_USE = 0.05
"""Share of the codebook that a fitting tokenizer uses, where there are as many tokens as codes."""
GAIN = 4
"""Times that differences are made brighter to be seen."""


@dataclass(frozen=True, kw_only=True)
class WindowErrors:
    """How one window came through."""

    split: str
    video: str
    first_frame: int
    psnr: float
    """Infinite if the pictures are equal."""
    psnr_mean_frame: float
    """Of a still picture, the mean of the window's frames."""
    ssim: float | None
    """None: the frames are smaller than its window."""
    lpips: float | None

    def recorded(self) -> dict[str, Any]:
        """Returns what JSON can hold: null for what was not measured, or is infinite."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in vars(self).items()
        }


@dataclass
class Reconstructions:
    """What is gathered of windows and their reconstructions, one after another."""

    codebook_size: int
    errors: ReconstructionErrors = field(default_factory=ReconstructionErrors)
    windows: list[WindowErrors] = field(default_factory=list)
    counts: Int[np.ndarray, " K"] = field(init=False)
    """How often each token occurs."""
    _frames: list[list[tuple[float, float]]] = field(default_factory=list)
    """Of each window, squared error and SSIM of each frame."""

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.codebook_size, np.int64)

    def add(
        self,
        place: tuple[str, str, int],
        real: Clip,
        made: Clip,
        tokens: Int[np.ndarray, "t h w"],
        perceptual: float | None,
    ) -> None:
        """Takes in a window: its split, video and first frame, its pixels, and what came of it."""
        self.errors.add(real, made)
        self.counts += np.bincount(tokens.reshape(-1), minlength=self.codebook_size)
        if perceptual is not None:
            self.errors.perceptual.append(perceptual)
        large = min(real.shape[1:3]) > 2 * SSIM_RADIUS
        self._frames.append(
            [
                (squared_error(x, y), ssim(x, y) if large else math.nan)
                for x, y in zip(real, made, strict=True)
            ]
        )
        split, video, first = place
        self.windows.append(
            WindowErrors(
                split=split,
                video=video,
                first_frame=first,
                psnr=psnr(self.errors.squared[-1]),
                psnr_mean_frame=psnr(self.errors.squared_mean_frame[-1]),
                ssim=self.errors.similarity[-1] if large else None,
                lpips=perceptual,
            )
        )

    def along(self) -> list[dict[str, float | None]]:
        """Returns PSNR and SSIM of each frame of a window, over all windows."""
        squared, similar = np.moveaxis(np.asarray(self._frames), -1, 0)
        return [
            {"psnr": finite(psnr(float(error))), "ssim": finite(float(likeness))}
            for error, likeness in zip(squared.mean(0), similar.mean(0), strict=True)
        ]

    def worst(self, count: int) -> list[int]:
        """Returns the windows of the lowest PSNR, the worst first."""
        return heapq.nsmallest(count, range(len(self.windows)), lambda n: self.windows[n].psnr)

    def record(self, shown: Mapping[str, int], lpips: object) -> dict[str, Any]:
        """Returns every number, what is shown of it, and in what the tokenizer does not fit.

        `lpips` is Missing if there was no network for it.
        """
        numbers, use = self.errors.summary(), codebook_use(self.counts)
        evaluation = Evaluation()
        evaluation.add(numbers)
        evaluation.add({f"codebook_{key}": value for key, value in asdict(use).items()})
        if isinstance(lpips, Missing):
            evaluation.skip(["lpips"], lpips.why)
        if not self.errors.similarity:
            evaluation.skip(["ssim"], "the frames are smaller than its window")
        return {
            "metrics": evaluation.metrics,
            "not_computed": evaluation.not_computed,
            "misfits": misfits(numbers, use, int(self.counts.sum())),
            "frames": self.along(),
            "windows": [window.recorded() for window in self.windows],
            "shown": {f"{name}.mp4": row for name, row in shown.items()},
        }


def finite(value: float) -> float | None:
    """Returns a number that JSON has a word for, or None."""
    return value if math.isfinite(value) else None


def misfits(numbers: dict[str, float], use: CodebookUse, num_tokens: int) -> list[str]:
    """Says by which rules a tokenizer does not fit the footage; nothing if it fits.

    `numbers` is what `ReconstructionErrors.summary` returns.
    """
    found = []
    own, still = numbers["psnr"], numbers["psnr_mean_frame"]
    if still >= RESTING:
        if own < MIN_RESTING:
            found.append(
                f"PSNR {own:.1f} dB on footage in which next to nothing moves; {MIN_RESTING:g} is "
                "the least for such"
            )
    elif own < still + MIN_GAIN:
        found.append(
            f"PSNR {own:.1f} dB, where the mean frame of each window, a still picture, has "
            f"{still:.1f}; {MIN_GAIN:g} dB above it is the least"
        )
    if use.share < MIN_USE and num_tokens >= use.used + use.dead:
        found.append(
            f"{use.used:,} of {use.used + use.dead:,} codes are used, {use.share:.1%}; "
            f"{MIN_USE:.0%} is the least"
        )
    return found


def side_by_side(real: Clip, made: Clip) -> Clip:
    """Puts a window, its reconstruction, and how far they differ, brighter, in a row."""
    difference = np.abs(real.astype(np.int16) - made)
    return np.concatenate([real, made, np.minimum(GAIN * difference, 255).astype(np.uint8)], axis=2)


def spread_and_worst(count: int, worst: Sequence[int], num_shown: int) -> dict[str, int]:
    """Returns which windows are shown by the name of their video: even ones, then the worst."""
    even = np.unique(np.linspace(0, count - 1, min(count, num_shown)).round().astype(int))
    named = {f"clip-{n:02d}": int(row) for n, row in enumerate(even, start=1)}
    return named | {f"worst-{n:02d}": row for n, row in enumerate(worst, start=1)}
