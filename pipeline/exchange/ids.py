"""Ids of others as what windows are cut from, and the one way to read them as tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.condition_files import VideoTexts
from pipeline.errors import ConfigError, PipelineError
from pipeline.exchange.arrays import FileArray

NO_IDS = {"f": "floats", "c": "complex numbers", "b": "truth values"}
NO_IDS |= {"M": "dates", "m": "spans of time", "U": "texts", "S": "texts", "V": "records"}
"""What numpy's kinds of types are, but for integers."""


@dataclass(frozen=True)
class Maker:
    """The tokenizer that made ids: with it they can be decoded."""

    identity: str
    codebook_size: int
    downsample: tuple[int, int, int]
    """Frames, rows and columns that a token is of."""
    causal: bool
    """Whether the first latent frame is of one frame."""

    def frames(self, latent: int) -> int:
        """Returns how many frames so many latent ones are."""
        return self.causal + (latent - self.causal) * self.downsample[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width in pixels of so many rows and columns."""
        return height * self.downsample[1], width * self.downsample[2]


@dataclass(frozen=True)
class ImportConfig:
    """How numbers become tokens, and videos become windows."""

    codebook_size: int | None = None
    """Ids are below it; None: the files say it, or `levels` do."""
    levels: tuple[int, ...] = ()
    """Of the digits along the last axis, the first the lowest; empty: numbers are ids."""
    frames: int | None = None
    """Latent frames of one window; None: what the files say, or all of each video."""
    stride: int = 1
    """Latent frames of the video from one of a window to the next."""
    hop: int | None = None
    """Latent frames from one window's start to the next; None: windows do not overlap."""
    test_share: float = 0.0
    """Last share of each video's time that is kept for the test, in [0, 1)."""
    maker: Maker | None = None
    """What made the ids, if it is known."""
    beside: tuple[str, ...] = ()
    """Which of `label` and `caption` are taken that lie beside ids in tars."""

    def __post_init__(self) -> None:
        if not 0 <= self.test_share < 1:
            raise ConfigError(f"the test's share must be in [0, 1), got {self.test_share}.")


@dataclass(frozen=True)
class Video:
    """Consecutive units of a file; windows never leave it."""

    name: str
    ids: FileArray
    """Units [n, …]; what a unit is, `Ids.unit` says."""
    first: int
    """Its first unit in the file."""
    length: int
    """How many units it has."""
    states: tuple[tuple[str, FileArray], ...] = ()
    """What else is known of each frame of the file, by name: float32 [frames, k]."""


@dataclass(frozen=True, kw_only=True)
class Ids:
    """What a path holds."""

    place: Path
    videos: Sequence[Video]
    size: tuple[int, int]
    """Ids of a latent frame, (h, w)."""
    unit: int = 1
    """Latent frames that stay together: 1, those of a clip, or those of a window."""
    are_windows: bool = False
    """Whether each unit is a window that comes from no known video."""
    window: int | None = None
    """Latent frames of a window, if the files say so."""
    codebook_size: int | None = None
    """What the files say of it."""
    frames: int | None = None
    """Frames of the video that one unit is of; None: not known."""
    causal: bool = False
    """Whether the first latent frame of a unit is of one frame."""
    fps: float | None = None
    """Of those frames."""
    texts: Mapping[str, VideoTexts] = field(default_factory=dict)
    """Labels and captions that lie beside the ids, by these names."""
    said: tuple[str, ...] = ()
    """What is left out, a line each."""


@dataclass(frozen=True)
class Codebook:
    """What numbers stand for: tokens below `size`, or their digits."""

    size: int
    levels: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type for its tokens, as a store has them or smaller."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    def tokens(self, array: FileArray, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Reads the tokens of some rows. Raises PipelineError, naming the first that is none."""
        numbers = array.read(start, stop)
        if not self.levels:
            _check_range(numbers, self.size, array, start, "ids")
            return numbers.astype(self.dtype)
        tokens = np.zeros(numbers.shape[:-1], np.int64)
        for place, level in enumerate(self.levels):
            digits = numbers[..., place]
            _check_range(digits, level, array, start, f"digits of level {place + 1}")
            tokens += digits.astype(np.int64) * math.prod(self.levels[:place])
        return tokens.astype(self.dtype)


def _check_range(numbers: NDArray[Any], size: int, array: FileArray, start: int, what: str) -> None:
    if int(numbers.min()) >= 0 and int(numbers.max()) < size:
        return
    row, *rest = np.argwhere((numbers < 0) | (numbers >= size))[0].tolist()
    raise PipelineError(
        f"{array} holds {numbers[row, *rest]} at {[start + row, *rest]}, but {what} must be "
        f"0 … {size - 1}."
    )


def check_ids(array: FileArray, axes: Sequence[str], config: ImportConfig) -> str:
    """Returns which of some axes, such as "T h w", an array of ids or digits has.

    Raises PipelineError if it has none of them, is empty, or does not hold integers.
    """
    digits = len(config.levels)
    wanted = [f"{one} {digits}" if digits else one for one in axes]
    fitting = [one for one in wanted if len(one.split()) == len(array.shape)]
    shapes = " or ".join(f"[{', '.join(one.split())}]" for one in wanted)
    if array.dtype.kind not in "iu":
        raise PipelineError(
            f"{array} must hold integers {shapes}, but holds {array.what}, which are "
            f"{NO_IDS.get(array.dtype.kind, 'no numbers')}. Save the ids as integers."
        )
    if not fitting or (digits and array.shape[-1] != digits):
        advice = ""
        if len(array.shape) == len(wanted[-1].split()) + 1:
            advice = " Digits along the last axis need --levels, windows a file of their own."
            if array.shape[0] == 1:
                advice = " Save its only row."
        raise PipelineError(f"{array} must hold integers {shapes}, but holds {array.what}.{advice}")
    if not math.prod(array.shape):
        raise PipelineError(f"{array} holds no window: its shape is {list(array.shape)}.")
    return axes[wanted.index(fitting[0])]
