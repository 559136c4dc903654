"""Layers of a VidTok tokenizer: blocks in space and in time by turns, zeros around frames."""

from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.cosmos.layers import Attention
from tokenizer.layers import Conv3d, Past, Triple, activate

SPACE, TIME, BOTH = (1, 3, 3), (3, 1, 1), (3, 3, 3)


def before(x: Float[Tensor, "B C T H W"], frames: int, *, still: bool) -> Tensor:
    """Puts frames in front: of zeros, or copies of the first if it was `still`."""
    return F.pad(x, (0, 0, 0, 0, frames, 0), "replicate" if still else "constant")


class ZeroConv(Conv3d):
    """A convolution with zeros around each frame, an odd one after; for time see `before`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        strides: Triple = (1, 1, 1),
        *,
        still: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, strides)
        t, h, w = (size - stride for size, stride in zip(kernel, strides, strict=True))
        self.pads = [w // 2, w - w // 2, h // 2, h - h // 2, 0, 0]
        self.frames, self.still = t, still

    def padded(
        self, x: Float[Tensor, "B C T H W"], past: Past | None
    ) -> Float[Tensor, "B C pT pH pW"]:
        """Adds both."""
        x = before(x, self.frames, still=self.still) if self.frames else x
        return F.pad(x, self.pads) if any(self.pads) else x


class PlaceNorm(nn.LayerNorm):
    """A norm over the channels of each place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Normalises."""
        return rearrange(
            super().forward(rearrange(x, "b c t h w -> b t h w c")), "b t h w c -> b c t h w"
        )


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Triple, *, still: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = PlaceNorm(in_channels)
        self.conv1 = ZeroConv(in_channels, out_channels, kernel, still=still)
        self.norm2 = PlaceNorm(out_channels)
        self.conv2 = ZeroConv(out_channels, out_channels, kernel, still=still)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else ZeroConv(in_channels, out_channels, (1, 1, 1))

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        """Adds a correction to `x`."""
        hidden = self.conv1(activate(self.norm1(x)))
        correction: Tensor = self.conv2(activate(self.norm2(hidden)))
        return correction.add_(self.shortcut(x))


class SpaceTime(nn.Module):
    """A residual block in space, then one in time."""

    def __init__(self, in_channels: int, out_channels: int, *, still: bool) -> None:
        super().__init__()
        self.space = ResidualBlock(in_channels, out_channels, SPACE)
        self.time = ResidualBlock(out_channels, out_channels, TIME, still=still)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        """Applies both."""
        made: Tensor = self.time(self.space(x))
        return made


class Blend(nn.Module):
    """Mixes what was only resized in time with what a convolution makes of it, in learned parts."""

    def __init__(self, channels: int, strides: Triple = (1, 1, 1), *, still: bool) -> None:
        super().__init__()
        self.conv = ZeroConv(channels, channels, BOTH, strides, still=still)
        self.mix = nn.Parameter(torch.zeros(1))

    def forward(
        self, resized: Float[Tensor, "B C t H W"], x: Float[Tensor, "B C T H W"]
    ) -> Float[Tensor, "B C t H W"]:
        """Mixes `resized` with the convolution of `x`."""
        part = torch.sigmoid(self.mix)
        mixed: Tensor = part * resized + (1 - part) * self.conv(x)
        return mixed


class Down(nn.Module):
    """Halves space, then time if asked to."""

    def __init__(self, channels: int, *, time: bool, still: bool) -> None:
        super().__init__()
        self.still = still
        self.space = ZeroConv(channels, channels, SPACE, (1, 2, 2))
        self.time = Blend(channels, (2, 1, 1), still=still) if time else None

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        """Means in time are of three frames."""
        x = self.space(x)
        if self.time is None:
            return x
        threes = before(x, 1, still=self.still).unfold(2, 3, 2)  # [B C t h w 3]
        halved: Tensor = self.time(threes.mean(-1), x)
        return halved


class Up(nn.Module):
    """Doubles space, then time if asked to: copies, then convolutions.

    `alone` is how many frames the first latent frame is by now, if time is doubled between frames
    by linear interpolation, which leaves these out; 0 for copies.
    """

    def __init__(self, channels: int, *, time: bool, still: bool, alone: int) -> None:
        super().__init__()
        self.alone = alone
        self.space = ZeroConv(channels, channels, SPACE)
        self.time = Blend(channels, still=still) if time else None

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C T H W"]:
        """Doubles."""
        x = self.space(x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))
        if self.time is None:
            return x
        if self.alone:
            parts = (x[:, :, : self.alone], x[:, :, self.alone :])
            x = torch.cat([between(part) for part in parts if part.shape[2]], dim=2)
        else:
            x = x.repeat_interleave(2, dim=2)
        doubled: Tensor = self.time(x, x)
        return doubled


def between(x: Float[Tensor, "B C T H W"]) -> Tensor:
    """Doubles time: each frame becomes two, a quarter of the way to either neighbour."""
    size = (2 * x.shape[2], *x.shape[3:])
    return F.interpolate(x.float(), size, mode="trilinear").to(x.dtype)


class Resolution(nn.Module):
    """Blocks, and what leads to the next resolution."""

    def __init__(self, channels: list[int], resize: nn.Module, *, still: bool) -> None:
        super().__init__()
        blocks = (SpaceTime(*pair, still=still) for pair in pairwise(channels))
        self.blocks = nn.Sequential(*blocks)
        self.resize = resize

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Applies all of it."""
        resized: Tensor = self.resize(self.blocks(x))
        return resized


def middle(channels: int, *, still: bool) -> nn.Sequential:
    """Makes what is between both halves: frames' places read one another once."""
    return nn.Sequential(
        ResidualBlock(channels, channels, BOTH, still=still),
        Attention(PlaceNorm(channels), channels, "space"),
        ResidualBlock(channels, channels, BOTH, still=still),
    )
