"""Attention of many heads; in half precision on a CPU, torch's own takes longer."""

import itertools
from collections.abc import Iterable
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mebt.linear import OneDNN, is_plain

SCORES = 1 << 20
"""Scores that exist at once: 4 MB."""
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
    own = query.device.type == "cpu" and query.dtype in HALF and not torch.compiler.is_compiling()
    if own and torch.is_grad_enabled():
        # Torch 2.13's gradient in half precision takes up to eight times as long as this.
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), dropout).to(query.dtype)
    if own and not dropout:
        return _few_at_once(query, key, value)
    if is_plain(query) and OneDNN.is_faster():
        with OneDNN():
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


def _few_at_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multiplies in half precision, where torch 2.13 computes as slowly as in float32.

    Several heads of few scores at once, as each call wakes all threads; else one by one, in which
    oneDNN takes half the time.
    """
    windows, heads, count, size = query.shape
    # For each token its heads side by side, as they lie in the streams.
    out = query.new_empty(windows, count, heads, size).transpose(1, 2)
    rows, group = max(1, SCORES // key.shape[2]), SCORES // max(1, count * key.shape[2])
    chosen: Iterable[int | slice] = range(heads)
    if group > 1:
        chosen = [slice(start, start + group) for start in range(0, heads, group)]
    library = OneDNN() if OneDNN.is_faster() else nullcontext()
    with torch.autocast("cpu", enabled=False):
        for window, some in itertools.product(range(windows), chosen):
            asked, keys, values = (x[window, some] for x in (query, key, value))
            turned = keys.float().mT
            for part in (slice(start, start + rows) for start in range(0, count, rows)):
                with library:
                    scores = asked[..., part, :].float().mul_(size**-0.5) @ turned
                weights = torch.softmax(scores, -1, out=scores).to(values.dtype)
                torch.matmul(weights, values, out=out[window, some, part])
    return out
