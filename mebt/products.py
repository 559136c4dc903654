"""Matrix products on a CPU: by the library that is fastest there, in the shapes it is fast in."""

import platform
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 512
"""Columns that MKL computes at once. With 256 rows, 16,384 columns together take it 1.4 times as
long on an AMD EPYC, 4,096 1.25 times; with 1,024 rows they take as long."""
CPU_INFO = Path("/proc/cpuinfo")
_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)  # Since torch 2.9.


class OneDNN:
    """Where products of float32 go through oneDNN: `with OneDNN():`.

    torch gives them to MKL, which reaches half of oneDNN's rate on processors with AVX-512 that are
    not Intel's. The only way there allows oneDNN to round to bfloat16, as it does on processors
    that have AMX: see `is_faster`. Set for a moment only, since while it is, torch refuses to tell
    its precision to `torch.compile`, and for the process, so other threads' products go along.
    """

    def __enter__(self) -> None:
        self.before = _MATMUL.fp32_precision
        _MATMUL.fp32_precision = "bf16"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        _MATMUL.fp32_precision = self.before

    @staticmethod
    @cache
    def is_faster() -> bool:
        """Says whether products of float32 are faster through oneDNN on this processor, and exact.

        By its kind and by trying, not by the clock: two runs must choose alike.
        """
        known = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.exists() else platform.processor()
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        if _MATMUL is None or not wide or "GenuineIntel" in known:
            return False
        with OneDNN(), torch.inference_mode(), torch.autocast("cpu", enabled=False):
            return is_exact()


def is_exact() -> bool:
    """Says whether a product of float32 keeps bits that one of rounded numbers would lose.

    Whole numbers of 13 bits, more than bfloat16 and TF32 hold, whose sums float32 holds in any
    order; of several shapes, for a library may have a way for each.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((1, 64, 64), (16, 16, 1024), (300, 77, 130), (512, 1024, 1024)):
        left = torch.randint(-8191, 8192, (rows, inner), generator=generator).float()
        right = torch.randint(2, (inner, columns), generator=generator).float() * 2 - 1
        if not torch.equal((left @ right).double(), left.double() @ right.double()):
            return False
    return True


def is_plain(x: Tensor) -> bool:
    """Says whether the library can be chosen: not where a compiler or autocast is at work."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def product(left: Float[Tensor, "R D"], right: Float[Tensor, "D E"]) -> Float[Tensor, "R E"]:
    """Returns `left @ right`, for use where gradients are computed by hand, or not at all.

    Raises RuntimeError where autograd would have to record it.
    """
    if not is_plain(left):
        return left @ right
    if OneDNN.is_faster():
        with OneDNN():
            return left @ right
    if right.shape[1] <= 2 * COLUMNS:
        return left @ right
    out = left.new_empty(left.shape[0], right.shape[1])
    blocks = zip(torch.split(out, COLUMNS, 1), torch.split(right, COLUMNS, 1), strict=True)
    for part, of_right in blocks:
        torch.mm(left, of_right, out=part)
    return out


def linear(
    x: Float[Tensor, "*R D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, " E"] | None = None
) -> Float[Tensor, "*R E"]:
    """Returns `F.linear(x, weight, bias)`; autograd cannot record it, as `product`."""
    if not is_plain(x):
        return F.linear(x, weight, bias)
    if OneDNN.is_faster():
        with OneDNN():
            return F.linear(x, weight, bias)
    if len(weight) <= 2 * COLUMNS:
        return F.linear(x, weight, bias)
    out = product(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], len(weight))
    return out if bias is None else out.add_(bias)


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights of products in place, as autocast to `dtype` would in every pass anew."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
