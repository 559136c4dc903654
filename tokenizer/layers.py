"""Convolutions that pad as published, and the blocks made of them."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import VQGANConfig

Triple = tuple[int, int, int]

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _pads(kernel: int, strides: Triple) -> list[int]:
    """Pads that turn an axis of n into n / stride, last axis first; an odd one goes in front."""
    pads = []
    for stride in reversed(strides):
        total = kernel - stride
        pads += [total - total // 2, total // 2]
    return pads


def _only_computed(x: Tensor) -> bool:
    """Says whether to lay out and compute `x` as is fastest on a CPU; training gained nothing."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def channels_last(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Lays each place's channels side by side if that is faster; all layers that follow keep it."""
    return x.contiguous(memory_format=torch.channels_last_3d) if _only_computed(x) else x


class Conv3d(nn.Conv3d):
    """A convolution that keeps an axis of n at n / stride, by padding with copies of the border."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        strides: Triple = (1, 1, 1),
        *,
        padding: str = "replicate",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, strides)
        self.pads = _pads(kernel, strides)
        self.mode = "constant" if padding == "zeros" else padding

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Pads, then convolves."""
        if any(self.pads):
            x = F.pad(x, self.pads, self.mode)
        exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if len(x) == 1 and exact and _only_computed(x) and HAS_ONEDNN:
            # One short clip by itself torch would keep from oneDNN, and take ten times as long.
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, (0, 0, 0), self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class Stem(Conv3d):
    """A convolution of few channels, which libraries for CPUs are slow at in three dimensions."""

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        """Convolves; as flat pictures, each with its neighbours in time as further channels."""
        if not _only_computed(x):
            return super().forward(x)
        padded = F.pad(x, self.pads, self.mode).unfold(2, self.kernel_size[0], 1)
        pictures = rearrange(padded, "b c t h w k -> (b t) (c k) h w")
        weight = rearrange(self.weight, "d c k h w -> d (c k) h w")
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return rearrange(
            F.conv2d(pictures, weight, self.bias), "(b t) d h w -> b d t h w", b=len(x)
        )


class Upsample3d(nn.ConvTranspose3d):
    """A transposed convolution that makes an axis of n one of n * stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, strides: Triple) -> None:
        super().__init__(in_channels, out_channels, kernel, strides, padding=kernel - 1)
        self.pads = _pads(kernel, strides)

    def forward(self, x: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B C T H W"]:  # type: ignore[override]
        """Pads, then convolves."""
        return super().forward(F.pad(x, self.pads, "replicate"))


def make_norm(kind: str, channels: int) -> nn.Module:
    """Makes the normalisation layer that `VQGANConfig.norm` names."""
    if kind == "group":
        return nn.GroupNorm(32, channels, eps=1e-6)
    return nn.BatchNorm3d(channels)


def activate(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Returns the SiLU of what nobody else needs; in its place, unless there will be gradients."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3x3 convolution, twice, added to the input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, channels)
        self.conv1 = Conv3d(channels, channels, 3)
        self.norm2 = make_norm(norm, channels)
        self.conv2 = Conv3d(channels, channels, 3)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Adds a correction to `x`."""
        hidden = self.conv1(activate(self.norm1(x)))
        correction: Tensor = self.conv2(activate(self.norm2(hidden)))
        return correction.add_(x)


class Encoder(nn.Module):
    """Video to features: each stage halves some axes and doubles the channels."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = Stem(config.in_channels, width, 3, padding=config.padding)
        self.stages = nn.ModuleList()
        for strides in config.strides:
            down = Conv3d(width, 2 * width, 4, strides, padding=config.padding)
            width *= 2
            self.stages.append(nn.Sequential(down, ResidualBlock(width, config.norm)))
        self.norm = make_norm(config.norm, width)

    def forward(self, video: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Encodes pixels in -0.5 … 0.5."""
        x = channels_last(self.stem(video))
        for stage in self.stages:
            x = stage(x)
        return activate(self.norm(x))


class Decoder(nn.Module):
    """Features to video: each stage doubles some axes."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        width = config.width << config.num_stages
        self.norm = make_norm(config.norm, width)
        self.stages = nn.ModuleList()
        for index, strides in enumerate(config.strides):
            # The published decoder keeps its width in the first stage and halves it in the others.
            out = width if index == 0 else width // 2
            self.stages.append(
                nn.Sequential(
                    Upsample3d(width, out, 4, strides),
                    ResidualBlock(out, config.norm),
                    ResidualBlock(out, config.norm),
                )
            )
            width = out
        self.head = Conv3d(width, config.in_channels, 3)

    def forward(self, features: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B C T H W"]:
        """Decodes to pixels around -0.5 … 0.5, not clamped."""
        x = activate(self.norm(channels_last(features)))
        for stage in self.stages:
            x = stage(x)
        video: Tensor = self.head(x)
        return video
