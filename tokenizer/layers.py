"""Convolutions that pad as published, and the blocks made of them."""

import dataclasses

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import VQGANConfig

Triple = tuple[int, int, int]

Past = dict[nn.Module, Tensor]
"""What each layer of a causal tokenizer is to see again, in front of a video's next piece."""

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _pads(kernel: Triple, strides: Triple, *, causal: bool) -> list[int]:
    """Pads that turn an axis of n into n / stride, last axis first; an odd one goes in front.

    If `causal`, time gets none: see `_after`.
    """
    pads = []
    for size, stride in zip(reversed(kernel), reversed(strides), strict=True):
        total = size - stride  # Then (n + total - size) // stride + 1 is n / stride.
        pads += [total - total // 2, total // 2]
    return [*pads[:4], 0, 0] if causal else pads


def _after(
    layer: nn.Module,
    x: Float[Tensor, "B C T H W"],
    past: Past | None,
    *,
    copies: int,
    kept: int,
) -> Float[Tensor, "B C more_T H W"]:
    """Puts what `layer` saw last in front of `x`, or `copies` of the first frame if it saw nothing.

    The last `kept` frames are what it will have seen last.
    """
    if past is None or layer not in past:
        x = F.pad(x, (0, 0, 0, 0, copies, 0), "replicate")
    else:
        x = torch.cat([past[layer], x], dim=2)
    if past is not None:
        past[layer] = x[:, :, x.shape[2] - kept :].clone()  # Of the others nothing stays in memory.
    return x


def _only_computed(x: Tensor) -> bool:
    """True on a CPU without gradients; training did not get faster by it."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def channels_last(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Lays each place's channels side by side if that is faster; all layers that follow keep it."""
    return x.contiguous(memory_format=torch.channels_last_3d) if _only_computed(x) else x


class Conv3d(nn.Conv3d):
    """A convolution that keeps an axis of n at n / stride, by padding with copies of the border.

    If `causal`, a frame depends on none after it, and 1 + n frames become 1 + n / stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        strides: Triple = (1, 1, 1),
        *,
        padding: str = "replicate",
        causal: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, strides)
        self.pads = _pads(kernel, strides, causal=causal)
        self.mode = "constant" if padding == "zeros" else padding
        self.causal = causal

    def padded(
        self, x: Float[Tensor, "B C T H W"], past: Past | None
    ) -> Float[Tensor, "B C pT pH pW"]:
        """Adds all that the kernel sees beside `x`."""
        if self.causal:
            kernel, stride = self.kernel_size[0], self.stride[0]
            x = _after(self, x, past, copies=kernel - 1, kept=kernel - stride)
        return F.pad(x, self.pads, self.mode) if any(self.pads) else x

    def forward(
        self, x: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B D t h w"]:
        """Pads, then convolves."""
        x = self.padded(x, past)
        exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if len(x) == 1 and exact and _only_computed(x) and HAS_ONEDNN:
            # One short clip by itself torch would keep from oneDNN, and take ten times as long.
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, (0, 0, 0), self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class Stem(Conv3d):
    """A convolution of few channels, which libraries for CPUs are slow at in three dimensions."""

    def forward(
        self, x: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B D T H W"]:
        """Convolves; as flat pictures, each with its neighbours in time as further channels."""
        if not _only_computed(x):
            return super().forward(x, past)
        padded = self.padded(x, past).unfold(2, self.kernel_size[0], 1)  # [B C T pH pW kernel]
        pictures = rearrange(padded, "b c t h w k -> (b t) (c k) h w")
        weight = rearrange(self.weight, "d c k h w -> d (c k) h w")
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return rearrange(
            F.conv2d(pictures, weight, self.bias), "(b t) d h w -> b d t h w", b=len(x)
        )


class Upsample3d(nn.ConvTranspose3d):
    """A transposed convolution that makes an axis of n one of n * stride.

    If `causal`, a frame depends on none after it, and 1 + n frames become 1 + n * stride. `kernel`
    is then a multiple of the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        strides: Triple,
        *,
        causal: bool = False,
    ) -> None:
        cut = (kernel - strides[0] if causal else kernel - 1, kernel - 1, kernel - 1)
        super().__init__(in_channels, out_channels, kernel, strides, padding=cut)
        self.pads = _pads((kernel, kernel, kernel), strides, causal=causal)
        self.causal = causal

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B D t h w"], past: Past | None = None
    ) -> Float[Tensor, "B C T H W"]:
        """Pads, then convolves."""
        begins = past is None or self not in past
        kernel, stride = self.kernel_size[0], self.stride[0]
        if self.causal:
            before = kernel // stride - 1
            x = _after(self, x, past, copies=before, kept=before)
        # A transposed convolution cuts off `padding` at both ends: pads make up for it in advance.
        video = super().forward(F.pad(x, self.pads, "replicate"))
        # The first latent frame is of one frame: those before it are none of the video.
        return video[:, :, stride - 1 :] if self.causal and begins else video


class FrameNorm(nn.GroupNorm):
    """A group norm of each frame by itself: over time it would tell frames of later ones."""

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Normalises."""
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


class PlaceNorm(nn.LayerNorm):
    """A layer norm of each place's channels, whatever batch, frame or piece it is in."""

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Normalises."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def make_norm(config: VQGANConfig, channels: int) -> nn.Module:
    """Makes the normalisation layer that `config.norm` names."""
    if config.norm == "group":
        return (FrameNorm if config.causal else nn.GroupNorm)(32, channels, eps=1e-6)
    if config.norm == "layer":
        return PlaceNorm(channels, eps=1e-6)
    return nn.BatchNorm3d(channels)  # Over time only in training; then by running statistics.


def activate(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """SiLU; in place when there are no gradients: the input is lost."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input."""

    def __init__(self, channels: int, config: VQGANConfig, kernel: Triple = (3, 3, 3)) -> None:
        super().__init__()
        self.norm1 = make_norm(config, channels)
        self.conv1 = Conv3d(channels, channels, kernel, causal=config.causal)
        self.norm2 = make_norm(config, channels)
        self.conv2 = Conv3d(channels, channels, kernel, causal=config.causal)

    def forward(
        self, x: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B C T H W"]:
        """Adds a correction to `x`."""
        hidden = self.conv1(activate(self.norm1(x)), past)
        correction: Tensor = self.conv2(activate(self.norm2(hidden)), past)
        return correction.add_(x)


class Stage(nn.Sequential):
    """Layers one after the other, each of which may have a past."""

    def forward(
        self, x: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B D t h w"]:
        """Applies all layers."""
        for layer in self:
            x = layer(x, past)
        return x


class Encoder(nn.Module):
    """Video to features: each stage halves some axes and doubles the channels."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        width, padding, causal = config.width, config.padding, config.causal
        self.stem = Stem(config.in_channels, width, (3, 3, 3), padding=padding, causal=causal)
        self.stages = nn.ModuleList()
        for strides in config.strides:
            t, h, w = (1 if config.local and stride == 1 else 4 for stride in strides)
            down = Conv3d(width, 2 * width, (t, h, w), strides, padding=padding, causal=causal)
            width *= 2
            kernel = (1, 1, 1) if config.local else (3, 3, 3)
            self.stages.append(Stage(down, ResidualBlock(width, config, kernel)))
        self.norm = make_norm(config, width)

    def forward(
        self, video: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B D t h w"]:
        """Encodes pixels in -0.5 … 0.5."""
        x = channels_last(self.stem(video, past))
        for stage in self.stages:
            x = stage(x, past)
        return activate(self.norm(x))


class Decoder(nn.Module):
    """Features to video: each stage doubles some axes."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        config = dataclasses.replace(config, norm=config.decoder_norm or config.norm)
        width = config.width << config.num_stages
        self.norm = make_norm(config, width)
        self.stages = nn.ModuleList()
        for index, strides in enumerate(config.strides):
            # The published decoder keeps its width in the first stage and halves it in the others.
            out = width if index == 0 else width // 2
            self.stages.append(
                Stage(
                    Upsample3d(width, out, 4, strides, causal=config.causal),
                    ResidualBlock(out, config),
                    ResidualBlock(out, config),
                )
            )
            width = out
        self.head = Conv3d(width, config.in_channels, (3, 3, 3), causal=config.causal)

    def forward(
        self, features: Float[Tensor, "B D t h w"], past: Past | None = None
    ) -> Float[Tensor, "B C T H W"]:
        """Decodes to pixels around -0.5 … 0.5, not clamped."""
        x = activate(self.norm(channels_last(features)))
        for stage in self.stages:
            x = stage(x, past)
        video: Tensor = self.head(x, past)
        return video
