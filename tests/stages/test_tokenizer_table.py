"""The table of what each part of a tokenizer brings, on tiny data."""

import json
from pathlib import Path

import pytest

from benchmarks import tokenizers
from pipeline.config import build, load_params
from pipeline.windows.plan import TokenizeConfig
from stages.fitting import check_window
from stages.tokenizer_task import FitTokenizerConfig
from tests.helpers.small import Flow
from tokenizer import VQGANConfig

ROOT = Path(__file__).parents[2]


def test_the_table_comes_from_one_command(
    made: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tokenizers, "BASE", {"tokenize.frames": "4"})
    rows = {"first": {}, "`local`": {"tokenizer.local": "true"}}
    monkeypatch.setattr(tokenizers, "ROWS", rows)
    for folder in ("benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    page = tmp_path / tokenizers.PAGE
    page.write_text(f"Before\n{tokenizers.BEGIN}old\n{tokenizers.END}After\n", encoding="utf-8")
    words = ["tokenizers", "--keep", str(tmp_path / "keep"), "--frames", str(made.root / "frames")]
    words += ["--params", str(made.root / "params.yaml"), "--steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    tokenizers.main()
    found = json.loads((tmp_path / tokenizers.RESULTS).read_text(encoding="utf-8"))
    assert list(found["rows"]) == list(rows)
    first, second = found["rows"].values()
    assert first.keys() == second.keys() == {key for key, _ in tokenizers.FIGURES.values()}
    assert first["gain"] != second["gain"]
    text = page.read_text(encoding="utf-8")
    assert (
        text
        == f"Before\n{tokenizers.BEGIN}{tokenizers.table(found['rows'])}{tokenizers.END}After\n"
    )
    assert text.count("\n| ") == 3


@pytest.mark.parametrize("values", tokenizers.ROWS.values(), ids=tokenizers.ROWS)
def test_every_row_is_a_tokenizer(values: dict[str, str]) -> None:
    sets = [f"{key}={value}" for key, value in {**tokenizers.BASE, **values}.items()]
    params = load_params(ROOT / "demo/params.yaml", sets)
    shape = build(VQGANConfig, params["tokenizer"], where="tokenizer")
    assert shape.codebook_size == 512
    windows = build(TokenizeConfig, params["tokenize"], where="tokenize")
    fit = build(FitTokenizerConfig, params["fit_tokenizer"], where="fit_tokenizer")
    check_window(shape, fit.windows(windows), "a row")


def test_the_page_has_the_table_of_today() -> None:
    found = json.loads((ROOT / tokenizers.RESULTS).read_text(encoding="utf-8"))
    assert list(found["rows"]) == list(tokenizers.ROWS)
    page = (ROOT / tokenizers.PAGE).read_text(encoding="utf-8")
    assert f"{tokenizers.BEGIN}{tokenizers.table(found['rows'])}{tokenizers.END}" in page
    assert f"{found['steps']:,} steps, on the demo's footage" in page
