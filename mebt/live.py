"""A few latent frames at a time: for whoever watches while they are drawn."""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mebt.conditions import Conditions
from mebt.draft_revise import Predict
from mebt.sampling import SampleConfig, sample


@torch.inference_mode()
def next_frames(
    predict: Predict,
    grid: tuple[int, int, int],
    known: Int[Tensor, "n h w"],
    config: SampleConfig,
    *,
    count: int,
    number: int,
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "k h w"]:
    """Draws the `count` latent frames that follow `known`, of which there may be none.

    `known` are the last ones of a video, and with the new ones no more than a window. What else
    there is of the window is drawn with them, as in training, and dropped: the next call may be
    about something else. The result depends on the weights, `known`, the config, its seed,
    `number`, by which calls of one video differ, and `conditions` of the whole window.
    """
    t, h, w = grid
    length = len(known)
    if not 0 < count <= t - length:
        raise ValueError(f"{length} latent frames and {count} new ones, but a window has {t}.")
    start = torch.zeros((1, t * h * w), dtype=torch.int64)
    start[:, : length * h * w] = known.flatten()
    kept = torch.arange(length * h * w)[None]
    given = (start, kept) if length else None
    window = sample(
        *(predict, grid, config),
        numbers=[number],
        given=given,
        conditions=conditions,
        device=device,
    )
    frames = rearrange(window[0], "(t h w) -> t h w", t=t, h=h)
    return frames[length : length + count].cpu()
