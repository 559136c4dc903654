"""Linear layers whose products are the fastest that there are, and that keep little for gradients.

On a CPU a product goes to the library that is fastest there, in the shapes that it is fast in. What
is cheap, a norm or GELU, is computed again in the backward pass in place of being kept.
"""

import platform
from collections.abc import Sequence
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


class _NormLinears(torch.autograd.Function):
    """`F.linear(normed, weight, bias)` of several layers, that keeps what `normed` is the norm of.

    The caller computes that, so that autograd knows how gradients get from there to `x`.
    """

    @staticmethod
    def forward(
        ctx: Any, normed: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        """Takes the weights of all layers, then their biases."""
        half = len(layers) // 2
        normed, *rounded = _rounded(normed, *layers[:half])
        ctx.save_for_backward(x, scale, shift, *layers[:half])
        return tuple(map(linear, [normed] * half, rounded, layers[half:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, *weights = ctx.saved_tensors
        normed = F.layer_norm(x, x.shape[-1:], scale, shift)
        of_weights, of_biases = zip(*(_of_layer(grad, normed) for grad in grads), strict=True)
        of_normed, *others = map(_of_input, grads, weights)
        for other in others:
            of_normed += other
        return of_normed, None, None, None, *of_weights, *of_biases


class _GeluLinear(torch.autograd.Function):
    """`F.linear(F.gelu(x), weight, bias)`, that keeps `x` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made, rounded = _rounded(F.gelu(x), weight)
        ctx.save_for_backward(x, weight)
        return linear(made, rounded, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        # d(x) = gelu'(x) * (grad @ weight), written over what it is made of.
        of_layer = _of_layer(grad, F.gelu(x))  # What is as large as `x` exists one at a time.
        of_made = _of_input(grad, weight)
        torch.ops.aten.gelu_backward(of_made, x, grad_input=of_made)
        return of_made, *of_layer


class _RecordedLinear(torch.autograd.Function):
    """`F.linear(x, weight, bias)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, rounded = _rounded(x, weight)
        ctx.save_for_backward(x, weight)
        return linear(x, rounded, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return _of_input(grad, weight), *_of_layer(grad, x)


def _rounded(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Rounds what is multiplied, as autocast would if it is on.

    Backward passes round weights once more: to keep what was rounded of all of them is half of what
    they take, and saves no time. FSDP gathers a weight again, but not what was made of it.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, *weights
    precision = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(precision) for tensor in (x, *weights))


def _of_layer(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a layer's weight and bias; autograd puts them in float32."""
    rows = grad.flatten(0, -2)
    return product(rows.T, x.flatten(0, -2).to(grad.dtype)), rows.sum(0)


def _of_input(grad: Tensor, weight: Tensor) -> Tensor:
    of_rows = product(grad.flatten(0, -2), weight.to(grad.dtype))
    return of_rows.view(*grad.shape[:-1], weight.shape[1])


def norm_linears(
    layers: Sequence[nn.Linear],
    norm: nn.LayerNorm,
    x: Float[Tensor, "B N D"],
    normed: Float[Tensor, "B N D"],
) -> tuple[Float[Tensor, "B N E"], ...]:
    """Returns `layer(normed)` for each layer, where `normed` is `norm(x)`; only `x` is kept."""
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    made: tuple[Tensor, ...] = _NormLinears.apply(  # type: ignore[no-untyped-call]
        normed, x, norm.weight, norm.bias, *weights, *biases
    )
    return made


def gelu_linear(layer: nn.Linear, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N D"]:
    """Returns `layer(gelu(x))`; only `x` is kept."""
    made: Tensor = _GeluLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return made


def recorded_linear(layer: nn.Linear, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
    """Returns `layer(x)`: like the others', its products are the fastest in both passes."""
    made: Tensor = _RecordedLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return made


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights of products in place, as autocast to `dtype` would in every pass anew."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
