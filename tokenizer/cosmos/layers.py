"""Layers of a Cosmos tokenizer: Haar patches, factorised causal convolutions, attention."""

from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.cosmos.config import Resampling
from tokenizer.layers import Conv3d, FrameNorm, activate

HALVES = tuple(
    f"b c {axes} -> two b c t h w" for axes in ("(t two) h w", "t (h two) w", "t h (w two)")
)
"""Neighbours along time, height and width taken apart."""
WHOLES = tuple(" -> ".join(reversed(pattern.split(" -> "))) for pattern in HALVES)
READERS = {"space": "b c t h w -> (b t) (h w) c", "time": "b c t h w -> (b h w) t c"}
"""What attends to one another: the places of a frame, or the frames of a place."""


def to_patches(video: Float[Tensor, "B C T H W"], size: int) -> Float[Tensor, "B P t h w"]:
    """Turns blocks of pixels into means and differences of neighbours, along each axis (Haar).

    The first frame is a block by itself, as if it had been still before.
    """
    x = F.pad(video, (0, 0, 0, 0, size - 1, 0), "replicate")
    for _ in range(size.bit_length() - 1):
        for halves in reversed(HALVES):
            first, second = rearrange(x, halves, two=2)
            x = torch.cat([first + second, first - second], dim=1) / 2
    return x


def from_patches(x: Float[Tensor, "B P t h w"], size: int) -> Float[Tensor, "B C T H W"]:
    """Undoes `to_patches`."""
    for _ in range(size.bit_length() - 1):
        for whole in WHOLES:
            mean, difference = x.chunk(2, dim=1)
            x = rearrange([mean + difference, mean - difference], whole)
    return x[:, :, size - 1 :]


def space_conv(in_channels: int, out_channels: int) -> Conv3d:
    """Makes a convolution of each frame, zeros around it."""
    return Conv3d(in_channels, out_channels, (1, 3, 3), padding="zeros")


def time_conv(channels: int, stride: int = 1) -> Conv3d:
    """Makes a convolution of each place's frames with the two before them."""
    return Conv3d(channels, channels, (3, 1, 1), (stride, 1, 1), causal=True)


def place_conv(in_channels: int, out_channels: int) -> Conv3d:
    """Makes a convolution of each place by itself."""
    return Conv3d(in_channels, out_channels, (1, 1, 1))


def factorised(in_channels: int, out_channels: int) -> nn.Sequential:
    """Makes a convolution in space, then one in time."""
    return nn.Sequential(space_conv(in_channels, out_channels), time_conv(out_channels))


def frame_norm(channels: int) -> FrameNorm:
    """Makes a norm over all channels and places of a frame."""
    return FrameNorm(1, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, factorised convolution, twice, added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = frame_norm(in_channels)
        self.conv1 = factorised(in_channels, out_channels)
        self.norm2 = frame_norm(out_channels)
        self.conv2 = factorised(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else place_conv(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        """Adds a correction to `x`."""
        hidden = self.conv1(activate(self.norm1(x)))
        correction: Tensor = self.conv2(activate(self.norm2(hidden)))
        return correction.add_(self.shortcut(x))


class Attention(nn.Module):
    """Adds to each place what it reads: of all places of its frame, or of itself before."""

    def __init__(self, norm: nn.Module, channels: int, over: Literal["space", "time"]) -> None:
        super().__init__()
        self.over = over
        self.norm = norm
        self.query = place_conv(channels, channels)
        self.key = place_conv(channels, channels)
        self.value = place_conv(channels, channels)
        self.out = place_conv(channels, channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Reads by one head of all channels."""
        normed, readers = self.norm(x), READERS[self.over]
        query, key, value = (
            rearrange(made(normed), readers) for made in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, is_causal=self.over == "time")
        back = " -> ".join(reversed(readers.split(" -> ")))
        b, _, _, h, w = x.shape
        named = {"h": h, "w": w} | ({"b": b} if self.over == "space" else {})
        correction: Tensor = self.out(rearrange(read, back, **named))
        return correction + x


def middle(channels: int) -> nn.Sequential:
    """Makes what is between both halves of the encoder's and the decoder's resolutions."""
    return nn.Sequential(
        ResidualBlock(channels, channels),
        Attention(frame_norm(channels), channels, "space"),
        Attention(frame_norm(channels), channels, "time"),
        ResidualBlock(channels, channels),
    )


class Down(nn.Module):
    """Halves some axes: a convolution beside a mean. 1 + 2k frames become 1 + k."""

    def __init__(self, channels: int, axes: Resampling) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), (1, 2, 2)) if axes.space else None
        self.time = time_conv(channels, stride=2) if axes.time else None
        self.mix = place_conv(channels, channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        """Halves space, then time."""
        if self.space is not None:
            mean = reduce(x, "b c t (h 2) (w 2) -> b c t h w", "mean")
            x = self.space(F.pad(x, (0, 1, 0, 1))) + mean
        if self.time is not None:
            still = F.pad(x, (0, 0, 0, 0, 1, 0), "replicate")
            x = self.time(x) + reduce(still, "b c (t 2) h w -> b c t h w", "mean")
        mixed: Tensor = self.mix(x)
        return mixed


class Up(nn.Module):
    """Doubles some axes: copies, corrected by a convolution. 1 + k frames become 1 + 2k."""

    def __init__(self, channels: int, axes: Resampling) -> None:
        super().__init__()
        self.time = time_conv(channels) if axes.time else None
        self.space = space_conv(channels, channels) if axes.space else None
        self.mix = place_conv(channels, channels)

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C T H W"]:
        """Doubles time, then space."""
        if self.time is not None:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.time(x) + x
        if self.space is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.space(x) + x
        mixed: Tensor = self.mix(x)
        return mixed


class Resolution(nn.Module):
    """Residual blocks, and what leads to the next resolution."""

    def __init__(self, channels: list[int], resize: nn.Module) -> None:
        super().__init__()
        blocks = (ResidualBlock(before, after) for before, after in pairwise(channels))
        self.blocks = nn.Sequential(*blocks)
        self.resize = resize

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Applies all of it."""
        resized: Tensor = self.resize(self.blocks(x))
        return resized
