"""`--overwrite` never reaches what the command reads."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from stages.__main__ import cli
from tests.helpers.small import Flow, content


@pytest.mark.parametrize(
    "words",
    [
        "extract --videos frames --out .",
        "fit-tokenizer --frames frames --out frames",
        "fit-tokenizer --frames frames --init run/t --out run",
        "tokenize --frames frames --tokenizer tokenizer.safetensors --out frames",
        "tokenize --frames frames --tokenizer frames/t --out tokens/../frames/",
        "train --tokens tokens --out tokens",
        "train --tokens tokens --out .",
        "sample --run run --out run",
        "sample --run run --given tokens --split test --out tokens",
        "sample --run run --draft samples --out samples",
        "decode --tokens samples --tokenizer tokenizer.safetensors --out samples",
        "evaluate --tokens tokens --tokenizer tokenizer.safetensors --out tokenizer.safetensors",
        "evaluate --tokens tokens --run run --out run/model.safetensors",
        "report --tokens tokens --params params.yaml --out params.yaml",
        "tokens import frames/t --codebook-size 9 --out frames/t",
        "tokens export tokens --out tokens/ids.npy",
    ],
)
def test_an_input_is_no_output(flow: Flow, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flow.root)
    for folder in ("frames", "run"):
        (flow.root / folder / "t").write_bytes(Path("tokenizer.safetensors").read_bytes())
    before = content(flow.root)
    more = [] if words.startswith(("evaluate", "report", "tokens export")) else ["--overwrite"]
    result = CliRunner().invoke(cli, [*words.split(), *more])
    assert result.exit_code == 1, result.output
    assert "which is read; choose another place." in result.output
    assert content(flow.root) == before
