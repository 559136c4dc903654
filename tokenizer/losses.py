"""What the 3D VQGAN is trained to reduce."""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 0.25 / 255
"""Values are of one grey level if they differ by less."""
MARGIN = 12 / 255
"""How far beyond a limit is to be decoded what is cut off there: more than a decoder is off by."""


def motion_weights(
    video: Float[Tensor, "B C T H W"], motion_weight: float
) -> Float[Tensor, "B 1 T H W"]:
    """Weighs pixels by how far they are from the clip's mean frame; the mean weight is 1.

    Moving pixels as a whole get `motion_weight` times the weight that all pixels share evenly:
    with a still camera nearly every pixel is background, and an even loss forgets what moves.
    """
    distance = (video - video.mean(2, keepdim=True)).abs().mean(1, keepdim=True)
    share = distance / distance.mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
    return (1 + motion_weight * share) / (1 + motion_weight)


def reconstruction_loss(
    reconstruction: Float[Tensor, "B C T H W"],
    video: Float[Tensor, "B C T H W"],
    *,
    motion_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean absolute difference, weighted by `motion_weights` if asked for."""
    difference = (reconstruction - video).abs()
    if motion_weight:
        difference = difference * motion_weights(video, motion_weight)
    return difference.mean()


def as_cut_off(
    reconstruction: Float[Tensor, "B C T H W"],
    video: Float[Tensor, "B C T H W"],
    limits: tuple[float, float],
    *,
    margin: float = 0.0,
) -> Float[Tensor, "B C T H W"]:
    """Cuts reconstructions off where the video lies at a limit, once they are `margin` beyond it.

    Cut off, it tells only "at least" or "at most" (censored regression, Tobin 1958), and what is
    decoded is cut off in turn. So white ground may be decoded as whiter; if it is to be by a
    `MARGIN`, it is exactly white whatever the decoder is off by: else it would come as near as it
    can, now above and now below, and flicker. Until it is, it is returned as darker by the margin:
    so it costs pixels, and what looks at pictures is to see it without.
    """
    low, high = limits
    at_high, at_low = video >= high - ROUNDING, video <= low + ROUNDING
    made = torch.where(at_high, torch.minimum(reconstruction - margin, video), reconstruction)
    return torch.where(at_low, torch.maximum(reconstruction + margin, video), made)


def grey_levels(video: Float[Tensor, "B C T H W"]) -> Int[Tensor, "256"]:
    """Counts the values of each grey level, 0 to 255."""
    return ((video + 0.5) * 255).round().long().clamp(0, 255).flatten().bincount(minlength=256)


def change_loss(
    reconstruction: Float[Tensor, "B C T H W"], video: Float[Tensor, "B C T H W"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the changes from each frame to the next; 0 for one frame.

    Falls as ground that rests stops to flicker: a decoder that makes several frames of a token
    leaves a pattern of its own on them, too small for the loss of pixels to mind.
    """
    if video.shape[2] < 2:
        return video.new_zeros(())
    return (reconstruction.diff(dim=2) - video.diff(dim=2)).abs().mean()


def drawn_frames(
    video: Float[Tensor, "B C T H W"], frames: Int[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Takes one frame of each clip: what the discriminator of frames sees."""
    _, c, _, h, w = video.shape
    chosen = video.gather(2, repeat(frames, "b -> b c 1 h w", c=c, h=h, w=w))
    return rearrange(chosen, "b c 1 h w -> b c h w")


def generator_loss(fake: Float[Tensor, "B 1 *sizes"]) -> Float[Tensor, ""]:
    """Falls as a discriminator scores reconstructions higher."""
    return -fake.mean()


def discriminator_loss(
    real: Float[Tensor, "B 1 *sizes"],
    fake: Float[Tensor, "B 1 *sizes"],
    *,
    kind: Literal["hinge", "vanilla"] = "hinge",
) -> Float[Tensor, ""]:
    """Falls as a discriminator scores videos higher and reconstructions lower.

    `hinge` asks for scores of at least 1 and at most -1, `vanilla` is the cross-entropy.
    """
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def feature_matching_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sums, over a discriminator's layers, how far it sees reconstructions from their videos."""
    parts = [F.l1_loss(f, r.detach()) for f, r in zip(fake, real, strict=True)]
    total: Tensor = sum(parts[1:], start=parts[0])
    return total
