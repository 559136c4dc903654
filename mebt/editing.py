"""Videos of which some tokens are kept: continued, filled in, drawn anew in places."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from mebt.conditions import Conditions
from mebt.draft_revise import Predict
from mebt.sampling import MAX, SampleConfig, sample


@torch.inference_mode()
def edit(
    predict: Predict,
    tokens: Int[Tensor, "t h w"],
    new: Bool[Tensor, "t h w"],
    config: SampleConfig,
    *,
    window_frames: int,
    context_frames: int,
    numbers: Sequence[int],
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "B t h w"]:
    """Draws the tokens that are `new`, a sample of each of `numbers`, and keeps all others.

    A video longer than `window_frames` latent frames is drawn window by window, each with at least
    `context_frames` of the one before it: from the front, or where all of the first latent frame is
    new, but not of the last, from the back. `config.keep`, `total_frames` and `context_frames` have
    no effect. `conditions` have states of all latent frames. See `sample` for what a sample depends
    on.
    """
    total, h, w = tokens.shape
    if total > window_frames and not 0 < context_frames < window_frames:
        raise ValueError(
            f"context_frames must be in 1 … {window_frames - 1}, got {context_frames}."
        )
    made = tokens.expand(len(numbers), -1, -1, -1).to(device)
    is_open = new.clone()
    starts = [*range(0, total - window_frames, window_frames - context_frames)]
    starts.append(max(0, total - window_frames))
    if new[0].all() and not new[-1].all():
        starts = [max(0, total - window_frames - start) for start in starts]
    for index, start in enumerate(starts):
        part = slice(start, start + window_frames)
        if not is_open[part].any():
            continue
        kept = (~is_open[part].flatten()).nonzero()[:, 0].to(device)
        window = rearrange(made[:, part], "b t h w -> b (t h w)")
        drawn = sample(
            predict,
            (min(total, window_frames), h, w),
            config,
            numbers=[number + index * MAX["num_samples"] for number in numbers],
            given=(window, kept.expand(len(numbers), -1)),
            conditions=conditions and conditions.window(start, window_frames),
            device=device,
        )
        made = made.clone()
        made[:, part] = rearrange(drawn, "b (t h w) -> b t h w", h=h, w=w)
        is_open[part] = False
    return made
