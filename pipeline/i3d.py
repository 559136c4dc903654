"""What the I3D network, on whose outputs FVD is computed, is given to see."""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

I3D_SIZE = 224


def i3d_input(
    videos: UInt8[Tensor, "B T H W 3"], *, size: int = I3D_SIZE
) -> Float[Tensor, "B 3 T size size"]:
    """Resizes frames as FVD does, without antialiasing, to values in -1 … 1."""
    b = len(videos)
    frames = rearrange(videos, "b t h w c -> (b t) c h w").to(torch.float32)
    resized = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
    return rearrange(2 * resized / 255 - 1, "(b t) c h w -> b c t h w", b=b)
