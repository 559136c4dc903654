"""LPIPS: how different two pictures look, by a network that people's judgements tuned."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG16's stages; all but the first begin with a halving."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's colours in -1 … 1, as the published weights expect them."""
SMALLEST = 16
"""Pixels a side of which four halvings leave one."""
FRAMES_AT_ONCE = 16
"""Frames that go through the network together: about 0.4 GB at 128x128 pixels."""
HOW_TO_GET = (
    "give vgg.pth of the lpips package (lpips/weights/v0.1/vgg.pth in its wheel) and torchvision's "
    "vgg16-397923af.pth, or one published TATS checkpoint, which holds both"
)
NAMES = (
    (r"(?:.*\.)?(?:features|net\.slice\d)\.(\d+\.(?:weight|bias))", r"trunk.\1"),
    (r"(?:.*\.)?lin(\d)\.model\.1\.weight", r"linear.\1"),
)
"""Names in published files, and ours: torchvision's trunk or the lpips package's; its layers."""


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity on VGG16, version 0.1 (Zhang et al., CVPR 2018).

    Sees pictures [B, 3, H, W] in -0.5 … 0.5 of at least `SMALLEST` pixels a side.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, (width, count) in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.trunk = nn.Sequential(*layers)
        weights = (nn.Parameter(torch.ones(1, width, 1, 1)) for width, _ in STAGES)
        self.linear = nn.ParameterList(weights)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)

    def features(self, pictures: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns what each stage sees, the channels of every place scaled to a length of 1."""
        x = (2 * pictures - self.shift) / self.scale
        seen = []
        for layer in self.trunk:
            if isinstance(layer, nn.MaxPool2d):
                seen.append(x)
            x = layer(x)
        return [F.normalize(stage, dim=1, eps=1e-10) for stage in (*seen, x)]

    def forward(
        self, x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Returns how different two pictures look; 0 for equal ones."""
        parts = [
            (weight * (a - b).square()).sum(1).mean((1, 2))
            for weight, a, b in zip(self.linear, self.features(x), self.features(y), strict=True)
        ]
        return torch.stack(parts).sum(0)

    @torch.inference_mode()
    def frame_distances(
        self, x: Float[Tensor, "N 3 H W"], y: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """Does the same for any number of frames, few at a time, without gradients."""
        parts = (torch.split(pictures, FRAMES_AT_ONCE) for pictures in (x, y))
        return torch.cat([self(*pair) for pair in zip(*parts, strict=True)])


def load_lpips(files: Mapping[str, Mapping[str, Tensor]], device: str = "cpu") -> LPIPS:
    """Builds LPIPS of published weights, frozen and in evaluation mode.

    `files` holds the tensors of each file by their published names; what is not of LPIPS in them
    is left alone. Raises ValueError, in one line, if a tensor is missing, does not fit or is given
    twice, or if a file adds nothing.
    """
    with torch.device("meta"):
        expected = LPIPS().state_dict()
    tensors: dict[str, Tensor] = {}
    for file, content in files.items():
        known = {name: ours for name in content if (ours := _our_name(name))}
        if not known:
            raise ValueError(f"{file} holds nothing of LPIPS: {HOW_TO_GET}.")
        for name, ours in known.items():
            if ours in tensors:
                raise ValueError(f"{file} holds {name!r}, which was there before; give it once.")
            _check(file, name, content[name], expected.get(ours))
            tensors[ours] = content[name].float()
    if missing := [name for name in expected if name not in tensors]:
        part = "VGG16 trunk" if missing[0].startswith("trunk.") else "linear layers"
        raise ValueError(
            f"{' and '.join(files)}: {len(missing)} of the {len(expected)} tensors of LPIPS are "
            f"missing, the first is of its {part}: {HOW_TO_GET}."
        )
    model = LPIPS()
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device)


def _our_name(published: str) -> str | None:
    for theirs, ours in NAMES:
        if match := re.fullmatch(theirs, published):
            return match.expand(ours)
    return None


def _check(file: str, name: str, tensor: Tensor, expected: Tensor | None) -> None:
    if expected is None:
        raise ValueError(
            f"{file} holds {name!r}, which LPIPS on VGG16 does not have: {HOW_TO_GET}."
        )
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{file}: tensor {name!r} has shape {list(tensor.shape)}, but that of LPIPS on VGG16 "
            f"has {list(expected.shape)}: {HOW_TO_GET}."
        )
    if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
        raise ValueError(f"{file}: tensor {name!r} holds values that are no finite numbers.")
