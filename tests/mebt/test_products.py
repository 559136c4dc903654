"""Products in blocks are those of torch, and take its own way where blocks would not help."""

import pytest
import torch
from torch.nn import functional as F

from mebt.products import COLUMNS, linear, product


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("columns", [3, 2 * COLUMNS, 2 * COLUMNS + 1, 4 * COLUMNS])
def test_blocks_change_nothing_but_rounding(rows: int, columns: int) -> None:
    x, weight, bias = torch.randn(2, rows, 5), torch.randn(columns, 5), torch.randn(columns)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(product(x.flatten(0, 1), weight.T), x.flatten(0, 1) @ weight.T)


def test_autocast_and_compilers_see_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(3, 5), torch.randn(4 * COLUMNS, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert product(x, weight.T).dtype == torch.bfloat16
    blocks = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, out: blocks.append(out.shape) or mm(*a, out=out))
    linear(x, weight)
    assert blocks == [(3, COLUMNS)] * 4
    torch.testing.assert_close(linear(x[0], weight), F.linear(x[0], weight))
    assert blocks[4:] == [(1, COLUMNS)] * 4
    linear(x.bfloat16(), weight.bfloat16())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    linear(x, weight)
    assert len(blocks) == 8
