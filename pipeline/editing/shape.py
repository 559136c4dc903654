"""How the tokens of a model's window lie over frames of video, and over which frames it is laid."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Mask = NDArray[np.bool_]
"""Pixels [T, H, W], or tokens [t, h, w]."""


@dataclass(frozen=True)
class WindowShape:
    """A window of tokens, and of the frames that they are of."""

    grid: tuple[int, int, int]
    """Tokens (t, h, w)."""
    downsample: tuple[int, int, int]
    """Frames, rows and columns of one token."""
    causal: bool
    """Whether the first latent frame is of one frame."""
    fps: float | None
    """Frames a second that the model learned from; None: not known."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""
        (_, h, w), (_, down, across) = self.grid, self.downsample
        return h * down, w * across

    def frames(self, latent: int) -> int:
        """Returns how many frames the first so many latent frames of a window are."""
        return latent * self.downsample[0] - self.causal * (self.downsample[0] - 1)

    def latents(self, frames: int) -> int:
        """Returns how many latent frames of a window hold its first so many frames."""
        return self.causal + math.ceil((frames - self.causal) / self.downsample[0])

    def to_tokens(self, pixels: Mask) -> Mask:
        """Returns the tokens of which any pixel is marked, for whole latent frames of pixels."""
        each, down, across = self.downsample
        length = len(pixels)
        firsts = np.arange(self.causal, length, each)
        marked = np.logical_or.reduceat(pixels, [*[0] * self.causal, *firsts], axis=0)
        for axis, every in ((1, down), (2, across)):
            firsts = np.arange(0, pixels.shape[axis], every)
            marked = np.logical_or.reduceat(marked, firsts, axis=axis)
        return marked

    def to_pixels(self, tokens: Mask) -> Mask:
        """Returns all pixels of the tokens that are marked."""
        each, down, across = self.downsample
        counts = [each] * len(tokens)
        if self.causal:
            counts[0] = 1
        return tokens.repeat(counts, axis=0).repeat(down, axis=1).repeat(across, axis=2)


def choose_span(new: range, total: int, shape: WindowShape, context: int) -> range:
    """Returns the frames that the model is to see, in order to draw the frames `new`.

    They begin where tokens then begin with `new`, and are whole latent frames, so that they may end
    after the `total` frames that there are. A window is filled up with frames before and after. On
    one side there are at least `context` latent frames; on two half as many, unless one window
    holds half as many of both together. Raises ConfigError if the tokenizer is causal and one
    window does not hold `new`.
    """
    window, each = shape.grid[0], shape.downsample[0]
    core = math.ceil(len(new) / each)
    first_alone = shape.causal and (new.start == 0 or core >= window)
    if first_alone:
        core, before = shape.latents(len(new)), 0
    else:
        before = shape.causal + (new.start - shape.causal) // each
    if shape.causal and core > window:
        raise ConfigError(
            f"{len(new)} new frames do not fit into the window of {shape.frames(window)}: one that "
            "slides would begin with a latent frame of several frames, but that of a causal "
            "tokenizer begins with a single one. Ask for fewer."
        )
    end = new.start + (shape.frames(core) if first_alone else core * each)
    after = max(0, total - end) // each
    room = max(0, window - core)
    side = context
    if shape.causal or (before and after):
        half = max(1, context // 2)
        side = 0 if shape.causal or room >= half else half
    # Of a causal window the first latent frame is of one frame, so `new` begins behind it.
    least = int(shape.causal and not first_alone)
    lead = min(before, max(least, side, room // 2, room - after))
    trail = min(after, max(side, room - lead))
    shown = shape.frames(lead) if lead else 0
    return range(new.start - shown, end + trail * each)
