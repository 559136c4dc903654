"""What the 3D VQGAN is trained to reduce."""

from jaxtyping import Float
from torch import Tensor


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
