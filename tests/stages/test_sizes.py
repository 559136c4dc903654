"""The whole flow on frames that are not square."""

import json
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow

HIGH, WIDE = 16, 24


@pytest.mark.slow
def test_frames_that_are_not_square_go_all_the_way(tmp_path: Path) -> None:
    flow = Flow(tmp_path)
    size = f"[{HIGH},{WIDE}]"
    flow.ok("extract", "--set", f"extract.size={size}")
    with Image.open(next((tmp_path / "frames/train").rglob("*.png"))) as image:
        assert image.size == (WIDE, HIGH)
    flow.ok("fit-tokenizer", "--set", f"tokenize.size={size}")
    flow.ok("tokenize", "--set", f"tokenize.size={size}")
    info = CliRunner().invoke(cli, ["tokens", "info", str(tmp_path / "tokens")])
    assert "4 frames, stride 1, 16x24 pixels" in info.output
    store = TokenStore(tmp_path / "tokens")
    assert store.grid == (2, 4, 6) and store.info.size == (HIGH, WIDE)
    assert not store.verify()
    flow.ok("train")
    flow.ok("sample", "--set", "sample.num_samples=3")
    assert TokenStore(tmp_path / "samples").info.size == (HIGH, WIDE)
    flow.ok("decode")
    with av.open(str(next((tmp_path / "videos").glob("*.mp4")))) as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width) == (HIGH, WIDE)
    words = ["--tokens", tmp_path / "tokens", "--samples", tmp_path / "samples"]
    words += ["--tokenizer", tmp_path / "tokenizer.safetensors", "--frames", tmp_path / "frames"]
    for stage, *more in (
        ("evaluate", "--out", tmp_path / "metrics.json", "--set", "evaluate.num_videos=2"),
        ("report", "--metrics", tmp_path / "metrics.json", "--out", tmp_path / "report.html"),
    ):
        result = CliRunner().invoke(cli, list(map(str, (stage, *words, *more))))
        assert result.exit_code == 0, result.output
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol["window"]["size"] == [HIGH, WIDE]
    assert f"{HIGH}\N{MULTIPLICATION SIGN}{WIDE} pixels" in (tmp_path / "report.html").read_text()


def test_a_frame_that_no_grid_fits_is_refused(flow: Flow) -> None:
    said = flow.refused("tokenize", "--set", "tokenize.size=[16,18]", out="other")
    assert "section tokenize does not fit" in said and "18" in said
