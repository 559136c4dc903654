"""The I3D network, on whose logits FVD is computed, and what it is given to see."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import CheckpointError
from pipeline.published.torchscript import read_tensors

I3D_SIZE = 224
I3D_CLASSES = 400
I3D_FRAMES = 9
"""The shortest clip of which anything is left after four halvings and an average over two."""
FRAMES_AT_ONCE = 32
"""Frames of several clips that go through the network together: about 0.5 GB of activations."""
HOW_TO_GET = (
    "give i3d_pretrained_400.pt, the published state dict of InceptionI3d (400 classes of "
    "Kinetics), which the code of TATS and MeBT downloads when it first computes FVD"
)
Triple = tuple[int, int, int]

STEM: tuple[tuple[str, int, int, int, int], ...] = (
    ("Conv3d_1a_7x7", 3, 64, 7, 2),
    ("Conv3d_2b_1x1", 64, 64, 1, 1),
    ("Conv3d_2c_3x3", 64, 192, 3, 1),
)
"""Published name, channels in and out, kernel, stride."""
MIXED: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Published name -> channels in, and those of b0, b1a, b1b, b2a, b2b, b3b."""
POOLS: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
"""Kernel and stride of the max-pooling in front of a layer."""


def pad_same(x: Float[Tensor, "B C T H W"], kernel: Triple, stride: Triple) -> Tensor:
    """Pads with zeros so that an axis of n becomes one of ceil(n / stride); an odd one at the end.

    What TensorFlow calls `SAME`: how much depends on the size, so it is no setting of a layer.
    """
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Unit(nn.Module):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-5)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Pads, convolves, normalises."""
        kernel, stride = (self.conv3d.kernel_size, self.conv3d.stride)
        padded = pad_same(x, (kernel[0],) * 3, (stride[0],) * 3)
        return F.relu(self.bn(self.conv3d(padded)))


class Pool(nn.Module):
    """Max-pooling whose border counts as zeros."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        """Pads, then takes the largest."""
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side: 1x1, two of 1x1 and 3x3, a pooling and 1x1."""

    def __init__(self, channels_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(channels_in, widths[0], 1)
        self.b1a = Unit(channels_in, widths[1], 1)
        self.b1b = Unit(widths[1], widths[2], 3)
        self.b2a = Unit(channels_in, widths[3], 1)
        self.b2b = Unit(widths[3], widths[4], 3)
        self.b3a = Pool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(channels_in, widths[5], 1)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        """Joins the channels of all branches."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """A linear layer for every place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, I3D_CLASSES, 1)

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B K t h w"]:
        """Scores the classes."""
        scores: Tensor = self.conv3d(x)
        return scores


def _layers() -> Iterator[tuple[str, nn.Module]]:
    stem = {name: Unit(*sizes) for name, *sizes in STEM}
    mixed = {name: Mixed(*sizes) for name, sizes in MIXED.items()}
    for name, layer in (stem | mixed).items():
        if name in POOLS:
            yield f"before_{name}", Pool(*POOLS[name])
        yield name, layer
    yield "average", nn.AvgPool3d((2, 7, 7), stride=1)
    yield "logits", Logits()


class I3D(nn.Sequential):
    """InceptionI3d with 400 classes, parameters under their published names.

    Sees clips [B, 3, T, 224, 224] in -1 … 1 of at least `I3D_FRAMES` frames.
    """

    def __init__(self) -> None:
        super().__init__(OrderedDict(_layers()))

    def forward(self, clips: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B K"]:
        """Returns the logits of the classes, averaged over time."""
        logits: Tensor = super().forward(clips)  # type: ignore[no-untyped-call]
        return logits.mean(dim=(2, 3, 4))

    @torch.inference_mode()
    def features(self, videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B K"]:
        """Returns the logits of bytes; holds few clips at a time, however many there are."""
        device = next(self.parameters()).device
        size = max(1, FRAMES_AT_ONCE // videos.shape[1])
        parts = torch.split(videos, size)
        # TF32, which convolutions on a GPU have by default, moves FVD; published ones are without.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self(i3d_input(part.to(device))).cpu() for part in parts])


def i3d_input(
    videos: UInt8[Tensor, "B T H W 3"], *, size: int = I3D_SIZE
) -> Float[Tensor, "B 3 T size size"]:
    """Resizes frames as FVD does, without antialiasing, to values in -1 … 1."""
    b = len(videos)
    frames = rearrange(videos, "b t h w c -> (b t) c h w").to(torch.float32)
    resized = F.interpolate(frames, size=(size, size), mode="bilinear", align_corners=False)
    return rearrange(2 * resized / 255 - 1, "(b t) c h w -> b c t h w", b=b)


def load_i3d(path: Path, device: str = "cpu") -> I3D:
    """Loads published weights, frozen and in evaluation mode; nothing of the file is run.

    Takes the state dict, or a TorchScript file with the same names in it. Raises CheckpointError,
    in one line, if it is neither.
    """
    tensors = _without_prefix(read_tensors(path))
    with torch.device("meta"):
        model = I3D()
    _check(path, tensors, model.state_dict())
    model.to_empty(device="cpu")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return model.eval().requires_grad_(False).to(device)


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops what a wrapper around the network puts in front of all names."""
    last = "logits.conv3d.weight"
    start = next((name.removesuffix(last) for name in tensors if name.endswith(last)), "")
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}


def _check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    if missing := sorted(expected.keys() - counters - tensors.keys()):
        theirs = (
            f"its {len(tensors)} tensors begin with {min(tensors)!r}" if tensors else "it has none"
        )
        raise CheckpointError(
            f"{path} is no I3D: it lacks {len(missing)} of {len(expected)} tensors, the first is "
            f"{missing[0]!r}; {theirs}. To compute FVD, {HOW_TO_GET}."
        )
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(
            f"{path} holds {unknown[0]!r}, which I3D does not have. To compute FVD, {HOW_TO_GET}."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, but that of I3D has "
                f"{list(expected[name].shape)}. To compute FVD, {HOW_TO_GET}."
            )
        if name not in counters and not (
            tensor.is_floating_point() and torch.isfinite(tensor).all()
        ):
            raise CheckpointError(
                f"{path}: tensor {name!r} holds values that are no finite numbers; get it again."
            )
