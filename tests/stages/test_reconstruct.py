"""`mebt reconstruct`: what a tokenizer keeps of any frames."""

import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.evaluation.reconstruction import misfits, side_by_side, spread_and_worst
from pipeline.frames.scan import scan_frames
from pipeline.metrics import CodebookUse, psnr, squared_error
from pipeline.pixels import decode_tokens
from pipeline.windows.encode import encoder_of
from pipeline.windows.plan import TokenizeConfig, WindowReader
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tokenizer import load_tokenizer

WINDOW = TokenizeConfig(frames=4, size=16)


def run(flow: Flow, *more: str, out: str = "kept") -> Result:
    root = flow.root
    words = ["reconstruct", "--frames", root / "frames", "--out", root / out]
    words += ["--tokenizer", root / "tokenizer.safetensors", "--params", root / "params.yaml"]
    return CliRunner().invoke(cli, [*map(str, words), *more])


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return record


@pytest.mark.slow
def test_numbers_are_those_of_the_windows(flow: Flow) -> None:
    result = run(flow, "--shown", "2")
    assert result.exit_code == 0, result.output
    record = record_of(flow.root / "kept")
    videos = scan_frames(flow.root / "frames").videos
    assert len(record["windows"]) == sum(len(video.frames) // 4 for video in videos)
    reader = WindowReader(videos, WINDOW)
    model = load_tokenizer(flow.root / "tokenizer.safetensors")
    errors, used = [], set()
    for window in record["windows"]:
        real = reader.pixels(window["split"], window["video"], window["first_frame"])
        tokens = encoder_of(model)(real[None])
        used |= set(tokens.flat)
        made = decode_tokens(model, tokens)[0]
        errors.append([squared_error(x, y) for x, y in zip(real, made, strict=True)])
        assert window["psnr"] == pytest.approx(psnr(np.mean(errors[-1])), abs=0.02)
    assert record["metrics"]["psnr"] == pytest.approx(psnr(np.mean(errors)), abs=0.02)
    assert record["metrics"]["codebook_used"] == pytest.approx(len(used), abs=1)
    along = [psnr(float(error)) for error in np.mean(errors, axis=0)]
    assert [frame["psnr"] for frame in record["frames"]] == pytest.approx(along, abs=0.02)
    assert record["not_computed"].keys() == {"lpips"}
    names = sorted(path.name for path in (flow.root / "kept").iterdir() if path.name != ".lock")
    shown = ["clip-01.mp4", "clip-02.mp4"]
    worst = ["worst-01.mp4", "worst-02.mp4"]
    assert names == [*shown, "index.html", "metrics.json", "reconstruct.json", *worst]
    ordered = sorted(window["psnr"] for window in record["windows"])
    assert [record["windows"][record["shown"][name]]["psnr"] for name in worst] == ordered[:2]
    with av.open(str(flow.root / "kept" / "worst-01.mp4")) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(192, 3 * 192, 3)] * 4
    page = (flow.root / "kept" / "index.html").read_text()
    assert 'src="worst-02.mp4"' in page and "<svg" in page and "mean frame" in page


def test_a_second_run_makes_the_same_and_other_values_are_refused(flow: Flow) -> None:
    few = ("--limit", "3", "--shown", "1")
    assert run(flow, *few).exit_code == 0
    before = content(flow.root / "kept")
    assert run(flow, *few).exit_code == 0
    assert content(flow.root / "kept") == before
    other = run(flow, "--limit", "2", "--shown", "1")
    assert other.exit_code == 1
    assert "was made with config.limit = 3, not 2" in other.output
    assert content(flow.root / "kept") == before
    assert run(flow, "--limit", "2", "--shown", "1", "--overwrite").exit_code == 0
    assert len(record_of(flow.root / "kept")["windows"]) == 2
    foreign = run(flow, out="frames")
    assert foreign.exit_code == 1 and "which is read" in foreign.output
    (flow.root / "mine").mkdir()
    (flow.root / "mine/thesis.tex").write_text("")
    foreign = run(flow, "--overwrite", out="mine")
    assert foreign.exit_code == 1 and "no folder of reconstructions" in foreign.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--set", "tokenize.frames=3"), "a clip of 3 frames does not divide into tokens of 2"),
        (("--set", "tokenize.frames=400"), "no window fits"),
        (("--set", "tokenize.size=18"), "a clip of 18 pixels high does not divide"),
    ],
)
def test_what_does_not_fit_is_one_line(flow: Flow, more: tuple[str, ...], said: str) -> None:
    result = run(flow, *more)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert said in line
    assert not (flow.root / "kept").exists()


def test_a_damaged_frame_leaves_no_metrics(flow: Flow) -> None:
    assert run(flow, "--limit", "2", "--shown", "1").exit_code == 0
    for path in (flow.root / "frames").rglob("*.png"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    result = run(flow, "--limit", "2", "--shown", "1")
    assert result.exit_code == 1
    assert "is not a readable image" in result.output.splitlines()[-1]
    assert not (flow.root / "kept" / "metrics.json").exists()


def test_footage_that_rests_is_judged_by_its_own_rule(flow: Flow) -> None:
    for path in (flow.root / "frames").rglob("*.png"):
        Image.new("RGB", (16, 16), (90, 90, 90)).save(path)
    assert run(flow, "--limit", "2", "--shown", "1").exit_code == 0
    record = record_of(flow.root / "kept")
    assert "psnr_mean_frame" not in record["metrics"]
    (line,) = [line for line in record["misfits"] if "PSNR" in line]
    assert "next to nothing moves" in line


USED = CodebookUse(used=90, dead=10, share=0.9, perplexity=80.0, bits=6.3)
FEW = CodebookUse(used=4, dead=96, share=0.04, perplexity=3.0, bits=1.6)


@pytest.mark.parametrize(
    ("own", "still", "use", "tokens", "rules"),
    [
        (23.0, 20.0, USED, 1000, []),
        (22.9, 20.0, USED, 1000, ["PSNR 22.9 dB"]),
        (30.0, 45.0, USED, 1000, []),
        (29.9, math.inf, USED, 1000, ["next to nothing moves"]),
        (30.0, 20.0, FEW, 100, ["4 of 100 codes are used, 4.0%"]),
        (30.0, 20.0, FEW, 99, []),  # Fewer tokens than codes tell nothing.
        (20.0, 20.0, FEW, 100, ["PSNR 20.0 dB", "4 of 100"]),
    ],
)
def test_a_misfit_is_told_by_its_rule(
    own: float, still: float, use: CodebookUse, tokens: int, rules: list[str]
) -> None:
    found = misfits({"psnr": own, "psnr_mean_frame": still}, use, tokens)
    assert len(found) == len(rules)
    assert all(rule in line for rule, line in zip(rules, found, strict=True))


def test_differences_are_shown_brighter() -> None:
    real = np.full((2, 3, 5, 3), 100, np.uint8)
    made = real + np.uint8(7)
    row = side_by_side(real, made)
    assert row.shape == (2, 3, 15, 3)
    assert (row[:, :, 10:] == 28).all()
    assert (side_by_side(real, np.zeros_like(real))[:, :, 10:] == 255).all()


def test_shown_windows_are_spread_and_named() -> None:
    assert spread_and_worst(11, [4], 3) == {
        "clip-01": 0, "clip-02": 5, "clip-03": 10, "worst-01": 4
    }  # fmt: skip
    assert spread_and_worst(1, [0], 8) == {"clip-01": 0, "worst-01": 0}
