"""Videos longer than the trained window, by a window that slides over what there is so far."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mebt.draft_revise import Canvas

Fill = Callable[[Canvas, int], Canvas]
"""Fills the open positions of a window that begins with this latent frame of the whole."""


def extend(
    fill: Fill,
    tokens: Int[Tensor, "B t h w"],
    *,
    window_frames: int,
    context_frames: int,
    num_frames: int,
) -> Int[Tensor, "B T h w"]:
    """Adds latent frames until there are at least `num_frames`.

    Each new window begins with the last `context_frames` of everything so far, given or made. The
    last window is kept whole, so the result may be longer by less than one window.
    """
    if not 0 < context_frames < window_frames:
        raise ValueError(
            f"context_frames must be in 1 … {window_frames - 1}, got {context_frames}: a window of "
            f"{window_frames} latent frames must begin with some known ones and add new ones."
        )
    if tokens.shape[1] < context_frames:
        raise ValueError(f"{tokens.shape[1]} latent frames given, context_frames {context_frames}.")
    _, _, h, w = tokens.shape
    num_given = context_frames * h * w
    while tokens.shape[1] < num_frames:
        known = rearrange(tokens[:, -context_frames:], "b t h w -> b (t h w)")
        start = known.new_zeros(len(known), window_frames * h * w)
        start[:, :num_given] = known
        kept = torch.arange(num_given, device=known.device).expand_as(known)
        first = tokens.shape[1] - context_frames
        window = fill(Canvas.given(start, kept), first).tokens
        new = rearrange(window[:, num_given:], "b (t h w) -> b t h w", h=h, w=w)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
