"""Linear layers that keep little for the backward pass: what is cheap is computed again there."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mebt.products import linear, product


class _LinearsOfNorm(torch.autograd.Function):
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


class _LinearOfGelu(torch.autograd.Function):
    """`F.linear(F.gelu(x), weight, bias)`, that keeps `x` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made, rounded = _rounded(F.gelu(x), weight)
        ctx.save_for_backward(x, weight)
        return linear(made, rounded, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        of_layer = _of_layer(grad, F.gelu(x))  # What is as large as `x` exists one at a time.
        of_made = _of_input(grad, weight)
        torch.ops.aten.gelu_backward(of_made, x, grad_input=of_made)
        return of_made, *of_layer


class _Linear(torch.autograd.Function):
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


def linear_of_norm(
    layers: Sequence[nn.Linear],
    norm: nn.LayerNorm,
    x: Float[Tensor, "B N D"],
    normed: Float[Tensor, "B N D"],
) -> tuple[Float[Tensor, "B N E"], ...]:
    """Returns `layer(normed)` for each layer, where `normed` is `norm(x)`; only `x` is kept."""
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    made: tuple[Tensor, ...] = _LinearsOfNorm.apply(  # type: ignore[no-untyped-call]
        normed, x, norm.weight, norm.bias, *weights, *biases
    )
    return made


def linear_of_gelu(layer: nn.Linear, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N D"]:
    """Returns `layer(gelu(x))`; only `x` is kept."""
    made: Tensor = _LinearOfGelu.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return made


def linear_of(layer: nn.Linear, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
    """Returns `layer(x)`: like the others', its products are the fastest in both passes."""
    made: Tensor = _Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return made
