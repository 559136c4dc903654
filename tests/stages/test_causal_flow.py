"""The whole flow with a causal tokenizer of levels: a window is 1 + 4 frames, or a picture."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from PIL import Image

from pipeline.pixels import decode_tokens
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow
from tokenizer import load_tokenizer

SHAPE = {"levels": "[4, 3, 2]", "codebook_size": 24, "embedding_dim": 3, "causal": "true"}
WINDOW = ("--set", "tokenize.frames=5")
FEW = ("--set", "sample.num_samples=6")


def run(flow: Flow, *words: str) -> str:
    params = ("--params", str(flow.root / "params.yaml"))
    result = CliRunner().invoke(cli, [*words, *params])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made_causal(made: Flow, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """A flow whose tokenizer, tokens and run are replaced by those of a causal tokenizer."""
    flow = made.copy(tmp_path_factory.mktemp("causal") / "flow")
    shape = [word for key, value in SHAPE.items() for word in ("--set", f"tokenizer.{key}={value}")]
    flow.ok("fit-tokenizer", *shape, *WINDOW)
    fitted = flow.root / "tokenizer-run" / "tokenizer.safetensors"
    fitted.replace(flow.root / "tokenizer.safetensors")
    flow.ok("tokenize", *WINDOW, "--overwrite")
    flow.ok("train", "--overwrite")
    return flow


@pytest.fixture
def causal(made_causal: Flow, tmp_path: Path) -> Flow:
    """A copy of it to change at will."""
    return made_causal.copy(tmp_path / "causal")


@pytest.mark.slow
def test_windows_begin_with_a_frame_by_itself_from_frames_to_numbers(causal: Flow) -> None:
    root = causal.root
    info = TokenStore(root / "tokens").info
    assert (info.frames, info.grid, info.codebook_size, info.causal) == (5, (3, 4, 4), 24, True)
    causal.ok("sample", *FEW, "--overwrite")
    samples = TokenStore(root / "samples").info
    assert (samples.frames, samples.grid, samples.causal) == (5, (3, 4, 4), True)
    causal.ok("decode", "--exact")
    assert zarr.open_array(root / "videos" / "frames.zarr").shape == (6, 5, 16, 16, 3)
    given = [f"--{name}={root / name}" for name in ("tokens", "samples", "run", "frames")]
    tokenizer = f"--tokenizer={root / 'tokenizer.safetensors'}"
    run(causal, "evaluate", *given, tokenizer, f"--out={root / 'metrics.json'}")
    found = json.loads((root / "metrics.json").read_text())
    assert found["protocol"]["samples"] == "whole"
    assert {"psnr", "codebook_use", "frechet_samples", "token_loss_mask_50"} <= set(
        found["metrics"]
    )
    run(causal, "report", given[0], tokenizer, f"--out={root / 'report.html'}")
    said = (root / "report.html").read_text("utf-8")
    assert "24 vectors of 3, of 4x3x2 levels" in said.replace("\N{MULTIPLICATION SIGN}", "x")
    assert "The first frame has tokens of its own." in said


@pytest.mark.parametrize(
    ("total", "latent", "frames"), [(1, 1, 1), (2, 2, 3), (3, 2, 3), (5, 3, 5)]
)
def test_frames_of_samples_are_raised_to_whole_latent_frames(
    causal: Flow, total: int, latent: int, frames: int
) -> None:
    asked = ("--set", f"sample.total_frames={total}")
    said = causal.ok("sample", *FEW, *asked, out="short")
    assert ("makes 3: each latent frame but the first is 2" in said) == (total != frames)
    info = TokenStore(causal.root / "short").info
    assert (info.grid[0], info.frames) == (latent, frames)


def test_a_window_does_not_slide_over_what_begins_otherwise(causal: Flow) -> None:
    line = causal.refused("sample", "--set", "sample.total_frames=6", out="long")
    assert "sample.total_frames is beyond the 5 frames of the window" in line


@pytest.mark.slow
def test_pictures_are_clips_of_one_frame(causal: Flow) -> None:
    causal.ok("tokenize", "--set", "tokenize.frames=1", out="pictures")
    info = TokenStore(causal.root / "pictures").info
    assert (info.frames, info.grid) == (1, (1, 4, 4))
    run_one = ("--tokens", str(causal.root / "pictures"))
    causal.ok("train", *run_one, out="run-of-pictures")
    causal.ok("sample", *FEW, "--run", str(causal.root / "run-of-pictures"), out="drawn")
    info = TokenStore(causal.root / "drawn").info
    assert (info.frames, info.grid, info.causal) == (1, (1, 4, 4), True)
    drawn = ("--tokens", str(causal.root / "drawn"))
    causal.ok("decode", *drawn, "--exact", out="shown")
    made = zarr.open_array(causal.root / "shown" / "frames.zarr", mode="r")[:]
    tokens = TokenStore(causal.root / "drawn").read("sample")
    expected = decode_tokens(load_tokenizer(causal.root / "tokenizer.safetensors"), tokens)
    assert made.shape == expected.shape == (6, 1, 16, 16, 3)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert len(np.unique(made.reshape(6, -1), axis=0)) > 1
    with av.open(str(causal.root / "shown" / "sample-00005.mp4")) as container:
        (picture,) = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    distances = np.abs(made[:, 0].astype(int) - picture).mean((1, 2, 3))
    assert distances[5] == distances.min()
    with Image.open(causal.root / "shown" / "sheet.webp") as sheet:
        assert sheet.n_frames == 1


@pytest.mark.parametrize("stage", ["fit-tokenizer", "tokenize"])
def test_other_windows_are_refused_in_one_line(causal: Flow, stage: str) -> None:
    shape = ("--set", "tokenizer.causal=true", "--set", "tokenize.frames=4")
    line = causal.refused(stage, *shape, out="other")
    assert "a clip of 4 frames does not divide into tokens of 2; use 1 + a multiple of 2." in line


def test_what_was_trained_otherwise_is_no_beginning(causal: Flow) -> None:
    init = causal.root / "tokenizer.safetensors"
    assert load_tokenizer(init).config.causal
    shape = [f"tokenizer.{key}={value}" for key, value in SHAPE.items() if key != "causal"]
    words = [word for value in shape for word in ("--set", value)]
    line = causal.refused("fit-tokenizer", "--init", str(init), *words, out="other")
    assert "has causal True, but section tokenizer asks for causal False" in line
