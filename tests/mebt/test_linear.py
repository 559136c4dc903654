"""Products in blocks are those of torch, and take its own way where blocks would not help."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mebt import linear as products
from mebt.linear import COLUMNS, OneDNN, linear, product


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has products computed by one library or the other, whatever the processor."""
    monkeypatch.setattr(OneDNN, "is_faster", lambda: request.param)
    return "oneDNN" if request.param else "MKL"


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("columns", [3, 2 * COLUMNS, 2 * COLUMNS + 1, 4 * COLUMNS])
def test_blocks_change_nothing_but_rounding(rows: int, columns: int) -> None:
    x, weight, bias = torch.randn(2, rows, 5), torch.randn(columns, 5), torch.randn(columns)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(product(x.flatten(0, 1), weight.T), x.flatten(0, 1) @ weight.T)


def test_autocast_and_compilers_see_plain_products(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(3, 5), torch.randn(4 * COLUMNS, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert product(x, weight.T).dtype == torch.bfloat16
    if library == "oneDNN":
        return
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


def precision() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


def test_the_library_is_chosen_for_a_moment(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = F.linear
    monkeypatch.setattr(products.F, "linear", lambda *a: seen.append(precision()) or plain(*a))
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    linear(x, weight)
    assert seen == ["bf16" if library == "oneDNN" else "none"]
    assert precision() == "none"
    with pytest.raises(ZeroDivisionError), OneDNN():
        raise ZeroDivisionError
    assert precision() == "none"


@pytest.mark.parametrize("info", ["vendor_id : GenuineIntel", "vendor_id : AuthenticAMD"])
def test_what_rounds_is_not_chosen(
    info: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(info, encoding="utf-8")
    monkeypatch.setattr(products, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for exact in (True, False):
        monkeypatch.setattr(products, "is_exact", lambda exact=exact: exact)
        assert OneDNN.is_faster.__wrapped__() == (exact and "Intel" not in info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not OneDNN.is_faster.__wrapped__()


def test_a_library_that_rounds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__

    def rounding(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32:
            left = left.bfloat16().float()
        return plain(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not products.is_exact()
