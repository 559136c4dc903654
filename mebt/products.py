"""Matrix products, cut into the shapes in which a CPU's library is fast."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 512
"""Columns that are computed at once. With 256 rows, 16,384 columns together take MKL 1.4 times as
long on an AMD EPYC, 4,096 1.25 times; with 1,024 rows they take as long."""


def _in_blocks(left: Tensor, columns: int) -> bool:
    """Says whether a product is cut: not where a compiler or another precision is at work."""
    plain = left.device.type == "cpu" and left.dtype == torch.float32
    busy = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return plain and columns > 2 * COLUMNS and not busy


def product(left: Float[Tensor, "R D"], right: Float[Tensor, "D E"]) -> Float[Tensor, "R E"]:
    """Returns `left @ right`, for use where gradients are computed by hand, or not at all.

    Raises RuntimeError where autograd would have to record it.
    """
    if not _in_blocks(left, right.shape[1]):
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
    if not _in_blocks(x, len(weight)):
        return F.linear(x, weight, bias)
    out = product(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], len(weight))
    return out if bias is None else out.add_(bias)


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the weights of products in place, as autocast to `dtype` would in every pass anew."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
