"""Our attention is torch's, to the rounding of half precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mebt import attention
from mebt.attention import attend


def heads(windows: int, count: int) -> Tensor:
    """Makes heads [B 3 N 8] as they lie in a stream."""
    return torch.randn(windows, count, 3, 8).transpose(1, 2)


@pytest.mark.parametrize("queries", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 90, 1000])
def test_half_precision_is_as_exact_as_it_can_be(
    queries: int, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SCORES", rows * 11)
    query, key, value = (x.to(dtype) for x in (heads(2, queries), heads(2, 11), heads(2, 11)))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with torch.no_grad():
        found = attend(query, key, value)
    assert found.dtype == dtype and found.shape == exact.shape
    assert found.transpose(1, 2).is_contiguous()
    assert (found - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()


def test_a_window_does_not_depend_on_others() -> None:
    query, key, value = (heads(3, count).bfloat16() for count in (20, 30, 30))
    with torch.no_grad():
        together = attend(query, key, value)
        for window in range(3):
            part = slice(window, window + 1)
            assert torch.equal(together[part], attend(query[part], key[part], value[part]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_as_exact_as_half_precision_allows(dtype: torch.dtype) -> None:
    half = [heads(2, count).to(dtype).requires_grad_() for count in (40, 11, 11)]
    exact = [x.detach().double().requires_grad_() for x in half]
    with torch.autocast("cpu", dtype):
        found = attend(*half)
    expected = F.scaled_dot_product_attention(*exact)
    weights = torch.randn_like(found)
    pairs = zip(
        [found, *torch.autograd.grad(found, half, weights)],
        [expected, *torch.autograd.grad(expected, exact, weights.double())],
        strict=True,
    )
    for given, wanted in pairs:
        assert given.dtype == dtype
        assert (given - wanted).norm() <= torch.finfo(dtype).eps * wanted.norm()


def test_dropout_is_left_to_torch() -> None:
    query, key, value = (heads(1, count).bfloat16() for count in (4, 6, 6))
    with torch.no_grad():
        torch.manual_seed(0)
        dropped = attend(query, key, value, 0.5)
        assert not torch.equal(dropped, attend(query, key, value, 0.0))
