"""Videos longer than the trained window, by a window that slides over what there is so far."""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mebt.draft_revise import Canvas

Fill = Callable[[Canvas, int], Canvas]
"""Fills the open positions of a window, for example `draft` with its settings. The number is the
latent frame of the video with which the window begins."""


def window_sizes(num_frames: int, *, window: int, context: int, redraw: int) -> list[int]:
    """Returns how many latent frames each window adds to a video of so many, from the first on."""
    if num_frames <= window:
        return [num_frames]
    between, missing = window - context - redraw, num_frames - window + redraw
    count = -(-(missing - redraw) // between) - 1  # The last window leaves none to be drawn anew.
    return [window - redraw, *[between] * count, missing - count * between]


def stream_frames(
    fill: Fill,
    tokens: Int[Tensor, "B t h w"],
    *,
    window_frames: int,
    context_frames: int,
    num_frames: int,
    redraw_frames: int = 0,
    first_frame: int = 0,
) -> Iterator[Int[Tensor, "B n h w"]]:
    """Yields the latent frames that follow `tokens`, window by window, as they are made.

    `tokens` are the last ones of a video so far, beginning with its latent frame `first_frame`, and
    `num_frames` those that it is to have. Each window begins with the last `context_frames` of
    everything so far. Its own last `redraw_frames`, drawn with nothing behind them, are left for
    the next window to draw anew, but for the last window's, which is kept whole: so there may be
    more frames than asked for, by less than a window. No more than a window is held in memory.
    """
    if not 0 < context_frames < window_frames - redraw_frames or redraw_frames < 0:
        raise ValueError(
            f"context_frames must be in 1 … {window_frames - redraw_frames - 1}, got "
            f"{context_frames}: a window of {window_frames} latent frames must begin with some "
            f"known ones and add new ones; redraw_frames is {redraw_frames}."
        )
    if tokens.shape[1] < context_frames:
        raise ValueError(f"{tokens.shape[1]} latent frames given, context_frames {context_frames}.")
    _, made, h, w = tokens.shape
    made += first_frame
    last, num_given = tokens[:, -context_frames:], context_frames * h * w
    while made < num_frames:
        known = rearrange(last, "b t h w -> b (t h w)")
        start = known.new_zeros(len(known), window_frames * h * w)
        start[:, :num_given] = known
        kept = torch.arange(num_given, device=known.device).expand_as(known)
        window = fill(Canvas.given(start, kept), made - context_frames).tokens
        new = rearrange(window[:, num_given:], "b (t h w) -> b t h w", h=h, w=w)
        if made + new.shape[1] < num_frames:
            new = new[:, : new.shape[1] - redraw_frames]
        made += new.shape[1]
        last = torch.cat([last, new], dim=1)[:, -context_frames:]
        yield new
