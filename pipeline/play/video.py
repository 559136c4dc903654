"""A video that goes on for as long as somebody watches: its last tokens, and frames of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import Bytes

Tokens = NDArray[np.int64]

BEFORE, AFTER = 2, 1
"""Latent frames that are decoded beside those that are shown, by tokenizers that look both ways.
The shipped fish are then 47 dB from what a whole window decodes to; with none behind them 28."""


@dataclass(frozen=True)
class Draw:
    """What the next latent frames are to be drawn by."""

    seed: int
    label: int | None
    """Place in the model's list; None: any."""
    number: int
    """How many times this video was drawn before."""
    temperature: float
    """Factor of the temperatures that the model is sampled at."""
    actions: tuple[int | None, ...]
    """Of each known latent frame, then of each new one; None: any."""


class Video:
    """Latent frames, drawn a few at a time, and the frames that they decode to.

    `draw` returns as many new latent frames [k h w] as there are more actions than known ones
    [n h w]; `decode` turns [n h w] into frames [T H W 3]. Little more than a window of the model is
    remembered. A causal tokenizer's latent frames mean something from the beginning of a window
    only: then the video ends with it.
    """

    def __init__(
        self,
        draw: Callable[[Tokens, Draw], Tokens],
        decode: Callable[[Tokens], Bytes],
        grid: tuple[int, int, int],
        *,
        count: int,
        causal: bool,
        seed: int,
        label: int | None,
    ) -> None:
        self.draw, self.decode, self.window, self.causal = draw, decode, grid[0], causal
        self.count = count
        """New latent frames at a time."""
        self.seed, self.label = seed, label
        self.tokens = np.zeros((0, *grid[1:]), np.int64)
        self.actions: tuple[int | None, ...] = ()
        """Of each latent frame in `tokens`."""
        self.number, self.unseen = 0, 0
        self.remembered = self.window if causal else self.window + BEFORE + AFTER

    def next_frames(self, action: int | None, temperature: float) -> Bytes:
        """Returns the frames [T H W 3] that come next; none if the video is at its end."""
        count, known = self.count, len(self.tokens)
        if self.causal:
            count = min(count, self.window - known)
        elif not known:
            count = min(count + AFTER, self.window)  # The last one is not shown yet.
        if not count:
            return np.zeros((0, 1, 1, 3), np.uint8)
        known = min(known, self.window - count)
        actions = self.actions[len(self.actions) - known :] + (action,) * count
        by = Draw(self.seed, self.label, self.number, temperature, actions)
        new = self.draw(self.tokens[len(self.tokens) - known :], by)
        self.tokens = np.concatenate([self.tokens, new])[-self.remembered :]
        self.actions = (*self.actions, *(action,) * count)[-self.remembered :]
        self.number, self.unseen = self.number + 1, self.unseen + count
        return self._show()

    def _show(self) -> Bytes:
        """Decodes what was not shown yet, but for a last latent frame that one is to follow."""
        total = len(self.tokens)
        start, stop = total - self.unseen, total - (0 if self.causal else AFTER)
        first = 0 if self.causal else max(0, start - BEFORE)
        frames = self.decode(self.tokens[first:])
        later = total - first - self.causal
        each = (len(frames) - self.causal) // later if later else 1
        self.unseen = total - stop

        def edge(place: int) -> int:
            """Returns with which frame a latent frame begins."""
            return max(0, (place - first - self.causal) * each + self.causal)

        return frames[edge(start) : edge(stop)]


def painted(tokens: Tokens, codebook_size: int, side: int) -> Bytes:
    """Paints each token [n h w] as a square of `side` pixels, in a colour of its own."""
    palette = np.random.default_rng(0).integers(256, size=(codebook_size, 3), dtype=np.uint8)
    return palette[tokens].repeat(side, axis=1).repeat(side, axis=2)
