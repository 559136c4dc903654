"""`mebt import-tokenizer` of VidTok's checkpoints."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.golden_checks.recipe import load_case, recipe_tensor
from tests.helpers.cosmos_files import GOLDEN
from tests.helpers.small import Flow
from tests.helpers.vidtok_files import CASE, write_vidtok
from tokenizer import identity, load_tokenizer


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and its YAML file."""
    write_vidtok(tmp_path / "v.ckpt", tmp_path / "v.yaml")
    return tmp_path / "v.ckpt", tmp_path / "v.yaml"


def imported(folder: Path, source: Path, *more: str, code: int = 0) -> str:
    words = ["import-tokenizer", str(source), "--out", str(folder / "out.safetensors"), *more]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == code, result.output
    assert (folder / "out.safetensors").exists() == (code == 0)
    return result.output


def test_a_checkpoint_encodes_as_the_published_network_did(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    source, config = files
    output = imported(tmp_path, source, "--config", str(config))
    assert "a token for 4 frames of 8x8 pixels" in output
    assert "1 tensor: a loss's network, needed for training only" in output
    meta, io = load_case(GOLDEN / CASE)
    model = load_tokenizer(tmp_path / "out.safetensors")
    spec = meta["inputs"]["clip0"]
    video = recipe_tensor(spec.pop("shape"), **spec) / 2
    assert torch.equal(model.encode(video), io["clip0.tokens"].long())
    assert identity(model) in output


def test_what_does_not_fit_is_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    source, config = files
    said = imported(tmp_path, source, code=1)
    assert "v.ckpt is of VidTok, which does not say how it computes; give the YAML file" in said
    config.write_text("model: {params: 3}")
    said = imported(tmp_path, source, "--config", str(config), code=1)
    assert "v.yaml: it has no usable 'model.params': 3." in said
    write_vidtok(source, config, **{"encoder.conv_in.conv.bias": torch.zeros(9)})
    said = imported(tmp_path, source, "--config", str(config), code=1)
    assert "encoder.stem.bias: ours [6], theirs [9] (encoder.conv_in.conv.bias)" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "size", "codebook_size"),
    [("vidtok_fsq_488", 16, 8**5), ("vidtok_fsq_41616", 32, 8**4)],
)
def test_tokens_of_vidtok_train_sample_and_become_videos(
    flow: Flow, case: str, size: int, codebook_size: int
) -> None:
    root = flow.root
    write_vidtok(root / "v.ckpt", root / "v.yaml", case=case)
    imported(root, root / "v.ckpt", "--config", str(root / "v.yaml"))
    (root / "out.safetensors").replace(root / "tokenizer.safetensors")
    values = ("tokenize.frames=5", "tokenize.hop=20", f"tokenize.size={size}")
    flow.ok("tokenize", *(word for value in values for word in ("--set", value)), "--overwrite")
    info = TokenStore(root / "tokens").info
    found = (info.frames, info.grid, info.codebook_size, info.causal)
    assert found == (5, (2, 2, 2), codebook_size, True)
    flow.ok("train", "--set", "train.max_steps=2", "--overwrite")
    flow.ok("sample", "--set", "sample.num_samples=2", "--overwrite")
    flow.ok("decode")
    assert len(list((root / "videos").rglob("*.mp4"))) == 2
