"""Cosmos's weights as its authors publish them: TorchScript files, made of golden recipes."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.golden_checks.recipe import load_meta, load_weights

GOLDEN = Path(__file__).parents[1] / "golden"
CONSTANTS = {
    "encoder": {
        "quantizer._levels": torch.tensor([8, 8, 8, 5, 5, 5], dtype=torch.int32),
        "quantizer.implicit_codebook": torch.zeros(3, 6, dtype=torch.bfloat16),
        "encoder.patcher3d.wavelets": torch.tensor([0.5, 0.5]).sqrt(),
    },
    "decoder": {"inv_quant.quantizer._levels": torch.tensor([8, 8, 8, 5, 5, 5])},
}
"""What tracing keeps besides the weights."""


class Named(nn.Module):
    """Holds tensors and further modules by the names given; its program uses all but `idle`."""

    def __init__(self, tensors: Mapping[str, Tensor], idle: Collection[str]) -> None:
        super().__init__()
        self.used = []
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(name, tensor)
        for first, held in inner.items():
            start = f"{first}."
            below = [name.removeprefix(start) for name in idle if name.startswith(start)]
            self.add_module(first, Named(held, below))
            if set(held) - set(below):
                self.used.append(first)

    def forward(self, x: Tensor) -> Tensor:
        for tensor in self.buffers(recurse=False):
            x = x + tensor.float().sum()
        for name in self.used:
            x = getattr(self, name)(x)
        return x


def cosmos_state(case: str = "cosmos_dv_8x16x16") -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights of a golden case, and the names that its program does not use."""
    meta = load_meta(GOLDEN / case)
    return load_weights(GOLDEN / case, meta["weights"]), meta["idle"]


def write_script(path: Path, tensors: Mapping[str, Tensor], idle: Collection[str]) -> Path:
    """Traces a module that holds these tensors, and saves it as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Named(tensors, idle), torch.zeros(())).save(str(path))
    return path


def write_pair(folder: Path, state: Mapping[str, Tensor], idle: Collection[str]) -> None:
    """Writes `encoder.jit` and `decoder.jit`."""
    for half, starts in (
        ("encoder", ("encoder.", "quant_conv.")),
        ("decoder", ("decoder.", "post_quant_conv.")),
    ):
        held = {name: tensor for name, tensor in state.items() if name.startswith(starts)}
        write_script(folder / f"{half}.jit", {**held, **CONSTANTS[half]}, idle)
