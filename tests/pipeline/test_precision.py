"""`auto`: told by the kind of the device, and by what was begun."""

from pathlib import Path

import pytest
from lightning_fabric import Fabric

from pipeline import precision
from pipeline.config import Precision
from pipeline.precision import precision_of, settle


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: avx2 avx512f avx512_bf16 avx512_vnni", "bf16-mixed"),
        ("flags\t\t: avx512f amx_tile amx_bf16", "bf16-mixed"),
        ("flags\t\t: avx2 avx512f avx512_bitalg", "32-true"),
        ("flags\t\t: avx512_bf16x", "32-true"),
        (None, "32-true"),
    ],
)
def test_auto_asks_what_a_processor_multiplies_in(
    flags: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(flags, encoding="utf-8")
    found, said = settle("auto", None, "cpu")
    assert found == expected
    assert said.startswith(f"{expected}, ")
    assert settle("auto", None, "mps")[0] == "32-true"


@pytest.mark.parametrize(
    ("asked", "recorded", "expected"),
    [
        ("auto", "bf16-mixed", ("bf16-mixed", "bf16-mixed, as it was begun")),
        ("auto", "32-true", ("32-true", "32-true, as it was begun")),
        ("16-mixed", "32-true", ("16-mixed", "")),
        ("32-true", None, ("32-true", "")),
    ],
)
def test_what_was_asked_for_counts_and_then_what_was_begun(
    asked: Precision, recorded: str | None, expected: tuple[str, str]
) -> None:
    assert settle(asked, recorded, "cpu") == expected


@pytest.mark.parametrize("recorded", ["auto", "64-true", ["32-true"], 7, None])
def test_a_record_that_names_no_precision_says_nothing(recorded: object) -> None:
    assert "as it was begun" not in settle("auto", recorded, "cpu")[1]


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed"])
def test_the_precision_of_a_fabric_is_known(name: Precision) -> None:
    assert precision_of(Fabric(accelerator="cpu", precision=name)) == name
