"""Attention of many heads; in half precision on a CPU, torch's own takes twice as long."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mebt.products import OneDNN, is_plain, product

SCORES = 1 << 20
"""Scores of one head that exist at once: 4 MB."""
HALF = (torch.bfloat16, torch.float16)


def attend(
    query: Float[Tensor, "B H N d"],
    key: Float[Tensor, "B H M d"],
    value: Float[Tensor, "B H M d"],
    dropout: float = 0.0,
) -> Float[Tensor, "B H N d"]:
    """Returns softmax(query @ key.T / sqrt(d)) @ value, of which never all scores exist at once.

    Scores are in float32, or finer. A window's values do not depend on how many others there are.
    """
    own = query.device.type == "cpu" and query.dtype in HALF and not torch.is_grad_enabled()
    if own and not dropout and not torch.compiler.is_compiling():
        return _head_by_head(query, key, value)
    if is_plain(query) and OneDNN.is_faster():
        with OneDNN():
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


def _head_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multiplies in half precision, where torch 2.13 computes as slowly as in float32."""
    windows, heads, count, size = query.shape
    # For each token its heads side by side, as they lie in the streams.
    out = query.new_empty(windows, count, heads, size).transpose(1, 2)
    rows = max(1, SCORES // key.shape[2])
    with torch.autocast("cpu", enabled=False):
        for window, head in itertools.product(range(windows), range(heads)):
            keys, values = key[window, head].float(), value[window, head]
            for part in (slice(start, start + rows) for start in range(0, count, rows)):
                scores = product(query[window, head, part].float().mul_(size**-0.5), keys.T)
                weights = torch.softmax(scores, 1, out=scores)
                torch.mm(weights.to(values.dtype), values, out=out[window, head, part])
    return out
