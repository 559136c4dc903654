"""`mebt import-tokenizer` of Cosmos's TorchScript files, and the flow with what it makes."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.golden_checks.recipe import load_case, recipe_tensor
from tests.helpers.cosmos_files import GOLDEN, cosmos_state, write_pair, write_script
from tests.helpers.small import Flow
from tokenizer import identity, load_tokenizer
from tokenizer.weights import FORMAT
from weights.file import save

LARGE, SMALL = "cosmos_dv_8x16x16", "cosmos_dv_4x8x8_patch2"
HALVES = ("encoder", "decoder")


def run(folder: Path, *sources: Path | str) -> Result:
    words = ["import-tokenizer", *map(str, sources), "--out", str(folder / "out.safetensors")]
    return CliRunner().invoke(cli, words)


def ok(folder: Path, *sources: Path | str) -> str:
    result = run(folder, *sources)
    assert result.exit_code == 0, result.output
    return result.output


def refused(folder: Path, *sources: Path | str) -> str:
    """Runs an import that must end with one clear line, exit code 1 and nothing at --out."""
    result = run(folder, *sources)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.output.startswith("Error: ")
    assert not (folder / "out.safetensors").exists()
    assert not list(folder.glob(".*partial*"))
    return result.output


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pairs of files, by the names of golden cases; only read it."""
    folder = tmp_path_factory.mktemp("cosmos")
    for case in (LARGE, SMALL):
        (folder / case).mkdir()
        write_pair(folder / case, *cosmos_state(case))
    return folder


@pytest.fixture
def pair(traced: Path, tmp_path: Path) -> list[Path]:
    """A copy of a pair to change at will."""
    files = (traced / LARGE / f"{half}.jit" for half in HALVES)
    return [Path(shutil.copy(file, tmp_path)) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("case", [LARGE, SMALL])
def test_a_pair_encodes_as_the_traced_network_did(traced: Path, tmp_path: Path, case: str) -> None:
    output = ok(tmp_path, *(traced / case / f"{half}.jit" for half in HALVES))
    meta, io = load_case(GOLDEN / case)
    t, h, w = meta["downsample"]
    assert f"a token for {t} frames of {h}x{w} pixels" in output
    assert "a constant, which is known here" in output
    model = load_tokenizer(tmp_path / "out.safetensors")
    spec = meta["inputs"]["clip0"]
    video = recipe_tensor(spec.pop("shape"), **spec) / 2
    assert torch.equal(model.encode(video), io["clip0.tokens"].long())
    assert identity(model) in output


def test_one_file_of_all_is_the_same_tokenizer(pair: list[Path], tmp_path: Path) -> None:
    ok(tmp_path, *pair)
    expected = identity(load_tokenizer(tmp_path / "out.safetensors"))
    (tmp_path / "out.safetensors").unlink()
    state, idle = cosmos_state()
    torch.save(state, tmp_path / "model.pt")
    said = refused(tmp_path, tmp_path / "model.pt")
    assert "model.pt: nothing in it tells how much it down-samples; give --downsample" in said
    assert expected in ok(tmp_path, tmp_path / "model.pt", "--downsample", "8", "16", "16")
    (tmp_path / "out.safetensors").unlink()
    assert expected in ok(tmp_path, bare(tmp_path, state, idle))


def bare(folder: Path, state: dict[str, Tensor], idle: list[str]) -> Path:
    """Writes a state dict without the layers that are not used, as newer networks have none."""
    torch.save({n: x for n, x in state.items() if n not in idle}, folder / "model.pt")
    return folder / "model.pt"


def test_half_the_bytes_stay_half_the_bytes(tmp_path: Path) -> None:
    state, idle = cosmos_state()
    halved = {name: tensor.bfloat16() for name, tensor in state.items()}
    ok(tmp_path, bare(tmp_path, halved, idle))
    stored = load_file(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = load_tokenizer(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    name = "encoder.conv_in.0.conv3d.weight"
    assert torch.equal(model.encoder.stem[0].weight, state[name].bfloat16().float())


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.usefixtures("pair")
def test_one_half_asks_for_the_other(tmp_path: Path, half: str) -> None:
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    said = refused(tmp_path, tmp_path / f"{half}.jit")
    assert f"{half}.jit: it has no {other}" in said
    assert len(said.splitlines()) == 1


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.target,)


@pytest.mark.parametrize("what", ["hostile", "cut off", "no script", "two networks", "other"])
def test_files_that_are_no_pair_are_one_clear_line(
    pair: list[Path], tmp_path: Path, what: str
) -> None:
    encoder, decoder = pair
    expected = {
        "hostile": "decoder.jit is damaged TorchScript, or cannot be read without running what",
        "cut off": "decoder.jit is a damaged or truncated zip file",
        "no script": "decoder.jit is no checkpoint: it looks like a text file",
        "two networks": "hold other values of 'quant_conv.conv3d.bias'; they are no parts of one",
        "other": "it has no encoder, as a Cosmos tokenizer has; give both files",
    }[what]
    if what == "hostile":
        members = {}
        with zipfile.ZipFile(decoder) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["decoder/data.pkl"] = pickle.dumps(Hostile(tmp_path / "ran"), protocol=2)
        with zipfile.ZipFile(decoder, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    elif what == "cut off":
        decoder.write_bytes(decoder.read_bytes()[:-100])
    elif what == "no script":
        decoder.write_text("hello")
    elif what == "two networks":
        held = {"quant_conv.conv3d.bias": torch.ones(6)}
        write_script(decoder, held, [])
    else:
        encoder = write_script(encoder, {"fc.weight": torch.zeros(2)}, [])
        decoder.unlink()
        decoder = write_script(decoder, {"fc.bias": torch.zeros(2)}, [])
    said = refused(tmp_path, encoder, decoder)
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["missing", "unknown", "not finite", "shape", "levels", "patch"])
def test_weights_that_do_not_fit_are_named(tmp_path: Path, what: str) -> None:
    state, idle = cosmos_state()
    key = "encoder.mid.block_1.conv1.0.conv3d.bias"
    expected = f"{key}: "
    if what == "missing":
        del state[key]
        expected = "encoder.middle.0.conv1.0.bias: ours [16], theirs is missing"
    elif what == "unknown":
        state["encoder.down.0.attn.0.0.q.conv3d.bias"] = torch.zeros(8)
        expected = "encoder.down.0.attn.0.0.q.conv3d.bias: theirs [8], ours has no such tensor"
    elif what == "not finite":
        state[key] = state[key] * float("nan")
    elif what == "shape":
        state[key] = torch.zeros(5)
        expected = "ours [16], theirs [5]"
    elif what == "levels":
        state["quantizer._levels"] = torch.tensor([8, 8])
        expected = "its codebook has 6 entries, but levels are [8, 8]"
    else:
        state["encoder.patcher3d.wavelets"] = torch.tensor([1.0, 1.0])
        expected = "encoder.patcher3d.wavelets is [1.0, 1.0]: its patches are no Haar wavelets"
    assert expected in refused(tmp_path, bare(tmp_path, state, idle))


def test_options_that_do_not_fit_are_refused(pair: list[Path], tmp_path: Path) -> None:
    assert "--config is not for Cosmos" in refused(tmp_path, *pair, "--config", str(pair[0]))
    said = refused(tmp_path, *pair, "--downsample", "4", "8", "8")
    assert "it down-samples by 8 16 16, not by --downsample 4 8 8." in said
    vqgan = tmp_path / "vqgan.ckpt"
    torch.save({"codebook.embeddings": torch.zeros(2, 2)}, vqgan)
    said = refused(tmp_path, vqgan, "--downsample", "8", "16", "16")
    assert "--downsample is for Cosmos" in said


WINDOW = ("--set", "tokenize.frames=9")


@pytest.fixture(scope="module")
def with_cosmos(made: Flow, traced: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """A flow whose tokenizer and tokens are replaced by those of a Cosmos tokenizer."""
    flow = Flow.__new__(Flow)
    flow.root = shutil.copytree(made.root, tmp_path_factory.mktemp("flow") / "flow")
    ok(flow.root, *(traced / SMALL / f"{half}.jit" for half in HALVES))
    (flow.root / "out.safetensors").replace(flow.root / "tokenizer.safetensors")
    flow.ok("tokenize", *WINDOW, "--overwrite")
    return flow


@pytest.mark.slow
def test_tokens_of_cosmos_train_sample_and_become_videos(with_cosmos: Flow) -> None:
    root = with_cosmos.root
    info = TokenStore(root / "tokens").info
    assert (info.frames, info.grid, info.codebook_size, info.causal) == (9, (3, 2, 2), 64_000, True)
    with_cosmos.ok("train", "--set", "train.max_steps=1", "--overwrite")
    few = ("--set", "sample.num_samples=3")
    with_cosmos.ok("sample", *few, "--overwrite")
    with_cosmos.ok("decode", "--exact")
    assert zarr.open_array(root / "videos" / "frames.zarr").shape == (3, 9, 16, 16, 3)
    tokenizer = ("--tokenizer", str(root / "tokenizer.safetensors"))
    given = (*("--tokens", str(root / "tokens"), "--frames", str(root / "frames")), *tokenizer)
    params = ("--params", str(root / "params.yaml"))
    for command, out in (("evaluate", "metrics.json"), ("report", "report.html")):
        words = [command, *given, "--out", str(root / out), *params]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
    assert "psnr" in json.loads((root / "metrics.json").read_text())["metrics"]
    said = (root / "report.html").read_text("utf-8").replace("\N{MULTIPLICATION SIGN}", "x")
    assert "A Cosmos tokenizer: each block of 4x8x8" in said
    assert "64,000 vectors of 6, of 8x8x8x5x5x5 levels" in said


def test_what_cosmos_cannot_do_is_one_clear_line(with_cosmos: Flow) -> None:
    line = with_cosmos.refused("tokenize", "--set", "tokenize.frames=8", out="other")
    assert "a clip of 8 frames does not divide into tokens of 4; use 1 + a multiple of 4." in line
    init = ("--init", str(with_cosmos.root / "tokenizer.safetensors"))
    line = with_cosmos.refused("fit-tokenizer", *init, out="other")
    assert "is a Cosmos tokenizer, which can encode and decode, but not be trained here" in line


def test_a_header_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    config = json.dumps({"kind": "later", "width": 3})
    save(tmp_path / "t.safetensors", FORMAT, {"x": torch.zeros(1)}, config, {})
    with pytest.raises(ValueError, match="this version knows no tokenizer of kind 'later'"):
        load_tokenizer(tmp_path / "t.safetensors")
