"""Linear layers that keep little for the backward pass: what is cheap is computed again there."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mebt.products import linear, product


class _LinearAgain(torch.autograd.Function):
    """`F.linear(made, weight, bias)` that keeps what `made` was made of: it is `again(*sources)`.

    The caller makes it, so that autograd knows how gradients get from there to the sources.
    """

    @staticmethod
    def forward(
        ctx: Any,
        made: Tensor,
        weight: Tensor,
        bias: Tensor,
        again: Callable[..., Tensor],
        *sources: Tensor,
    ) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(weight, *sources)
        return linear(made, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *sources = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_made = product(rows, weight.to(grad.dtype)).view(*grad.shape[:-1], weight.shape[1])
        made = ctx.again(*sources).to(grad.dtype)  # Under autocast products are of half precision.
        return (
            grad_made,
            (rows.T @ made.flatten(0, -2)).to(weight.dtype),
            rows.sum(0, dtype=weight.dtype),
            None,
            *(None for _ in sources),
        )


def _normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def linear_of_norm(
    layer: nn.Linear,
    norm: nn.LayerNorm,
    x: Float[Tensor, "B N D"],
    normed: Float[Tensor, "B N D"],
) -> Float[Tensor, "B N E"]:
    """Returns `layer(normed)`, where `normed` is `norm(x)`; only `x` is kept."""
    made: Tensor = _LinearAgain.apply(  # type: ignore[no-untyped-call]
        normed, layer.weight, layer.bias, _normalize, x, norm.weight, norm.bias
    )
    return made


def linear_of_gelu(layer: nn.Linear, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N D"]:
    """Returns `layer(gelu(x))`; only `x` is kept."""
    made: Tensor = _LinearAgain.apply(  # type: ignore[no-untyped-call]
        F.gelu(x), layer.weight, layer.bias, F.gelu, x
    )
    return made
