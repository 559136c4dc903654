"""`mebt import-tokenizer` and `import-model`: what they read, and all that they refuse."""

import argparse
import pickle
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mebt import load_model, model_metadata
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.foreign_files import (
    ARGS,
    CONFIG,
    equal_weights,
    mebt_model,
    mebt_state,
    vqgan_model,
    vqgan_state,
    write_mebt,
    write_old_vqgan,
    write_vqgan,
)
from tests.helpers.small import write_params
from tokenizer import identity, load_tokenizer, tokenizer_metadata

OUTPUTS = {"import-tokenizer": "out.safetensors", "import-model": "out"}


def run(command: str, source: Path, *more: str) -> Result:
    out = source.parent / OUTPUTS[command]
    return CliRunner().invoke(cli, [command, str(source), "--out", str(out), *more])


def ok(command: str, source: Path, *more: str) -> str:
    result = run(command, source, *more)
    assert result.exit_code == 0, result.output
    return result.output


def refused(command: str, source: Path, *more: str) -> str:
    """Runs a command that must end with one clear line, exit code 1 and nothing at --out."""
    result = run(command, source, *more)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.output.startswith("Error: ")
    assert str(source) in result.output
    assert not (source.parent / OUTPUTS[command]).exists()
    assert not list(source.parent.glob(".*partial*"))
    return result.output


def padded(x: Tensor, conv: nn.Conv3d, pads: list[int]) -> Tensor:
    x = F.pad(x, pads, mode="constant", value=0)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride)


@pytest.mark.parametrize("downsample", [[2, 4, 4], [4, 2, 4]])
def test_the_published_padding_by_a_constant_is_padding_by_zeros(
    tmp_path: Path, downsample: list[int]
) -> None:
    changed = {"downsample": downsample, "padding_type": "constant"}
    source = write_vqgan(tmp_path / "v.ckpt", vqgan_state(vqgan_model()), **changed)
    assert "padding zeros" in ok("import-tokenizer", source)
    model = load_tokenizer(tmp_path / "out.safetensors").eval()
    video = torch.rand(1, 3, 8, 12, 20, generator=torch.Generator().manual_seed(0)) - 0.5
    by_hand = padded(video, model.encoder.stem, [1] * 6)
    for stage, (down, residual) in enumerate(model.encoder.stages):
        strides = [2 if factor >> stage > 1 else 1 for factor in downsample]
        # A kernel of 4 pads an axis that is halved by 1 and 1, one that is kept by 2 and 1.
        pads = [side for s in reversed(strides) for side in ((1, 1) if s == 2 else (2, 1))]
        by_hand = residual(padded(by_hand, down, pads))
    by_hand = model.to_embedding(F.silu(model.encoder.norm(by_hand)))
    with torch.no_grad():
        torch.testing.assert_close(model.features(video), by_hand)


@pytest.fixture
def vqgan(tmp_path: Path) -> Path:
    return write_vqgan(tmp_path / "vqgan.ckpt", vqgan_state(vqgan_model()))


@pytest.fixture
def mebt(tmp_path: Path) -> Path:
    return write_mebt(tmp_path / "mebt.ckpt", mebt_state(mebt_model(), vqgan_model()))


@pytest.mark.parametrize("write", [write_vqgan, write_old_vqgan])
def test_a_vqgan_of_either_layout_keeps_its_weights(tmp_path: Path, write: Callable) -> None:
    source = write(tmp_path / "vqgan.ckpt", vqgan_state(vqgan_model()))
    output = ok("import-tokenizer", source)
    model = load_tokenizer(tmp_path / "out.safetensors")
    assert model.config == vqgan_model().config
    assert equal_weights(model, vqgan_model())
    assert identity(vqgan_model()) in output
    assert "1 tensor: a discriminator" in output
    assert len(tokenizer_metadata(tmp_path / "out.safetensors")["source"]) == 64


def test_a_mebt_becomes_a_run_that_samples_and_decodes_by_itself(
    tmp_path: Path, mebt: Path
) -> None:
    output = ok("import-model", mebt)
    folder = tmp_path / "out"
    assert equal_weights(load_model(folder / "model.safetensors"), mebt_model())
    assert equal_weights(load_tokenizer(folder / "tokenizer.safetensors"), vqgan_model())
    metadata = model_metadata(folder / "model.safetensors")
    assert metadata["tokenizer"] == identity(vqgan_model())
    assert [metadata[key] for key in ("frames", "stride", "size")] == ["4", "3", "12"]
    assert "2x3x3 = 18 tokens of 13" in output
    params = ["--params", str(write_params(tmp_path / "params.yaml"))]
    samples, videos = str(tmp_path / "samples"), tmp_path / "videos"
    few = ["--set", "sample.num_samples=2"]
    for words in (
        ["sample", "--run", str(folder), "--out", samples, *few],
        [
            *("decode", "--tokens", samples, "--out", str(videos)),
            *("--tokenizer", str(folder / "tokenizer.safetensors")),
        ],
    ):
        result = CliRunner().invoke(cli, [*words, *params])
        assert result.exit_code == 0, result.output
    assert TokenStore(Path(samples)).info.frames == 4
    assert len(list(videos.rglob("*.mp4"))) == 2


def test_hyper_parameters_come_from_a_yaml_if_the_file_has_none(tmp_path: Path) -> None:
    bare = tmp_path / "bare.ckpt"
    torch.save(vqgan_state(vqgan_model()), bare)
    assert "holds no hyper-parameters" in refused("import-tokenizer", bare)
    config = tmp_path / "vqgan.yaml"
    YAML().dump(ARGS, config)
    ok("import-tokenizer", bare, "--config", str(config))
    torch.save({"state_dict": mebt_state(mebt_model(), vqgan_model())}, bare)
    assert "holds no hyper-parameters" in refused("import-model", bare)
    YAML().dump(CONFIG, config)
    ok("import-model", bare, "--config", str(config))
    assert model_metadata(tmp_path / "out" / "model.safetensors")["stride"] == "3"


def test_down_sampling_is_told_or_guessed_aloud(tmp_path: Path) -> None:
    state = mebt_state(mebt_model(), vqgan_model())
    source = write_mebt(tmp_path / "m.ckpt", state, {**CONFIG, "data": {"resolution": 128}})
    assert "note: the checkpoint does not tell" in ok("import-model", source)
    output = ok("import-model", source, "--downsample", "1", "4", "4", "--overwrite")
    assert "note:" not in output
    assert "down-sampling 1x4x4" in output
    model = load_tokenizer(tmp_path / "out" / "tokenizer.safetensors")
    assert model.config.downsample == (1, 4, 4)


def test_an_output_is_replaced_only_when_told_to(tmp_path: Path, vqgan: Path, mebt: Path) -> None:
    for command, source in (("import-tokenizer", vqgan), ("import-model", mebt)):
        ok(command, source)
        result = run(command, source)
        assert result.exit_code == 1
        assert "--overwrite" in result.output
        ok(command, source, "--overwrite")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "notes.txt" in run("import-model", mebt, "--overwrite").output
    assert (tmp_path / "out" / "notes.txt").exists()


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.target)!r}, 'w').write('owned')",))


@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle", "protocol 4"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_hostile_pickle_is_named_and_not_run(tmp_path: Path, command: str, layout: str) -> None:
    target, source = tmp_path / "owned", tmp_path / "hostile.ckpt"
    content = {"state_dict": vqgan_state(vqgan_model()), "hyper_parameters": Hostile(target)}
    if layout == "plain pickle":
        source.write_bytes(pickle.dumps(content))
    elif layout == "protocol 4":
        torch.save(content, source, pickle_protocol=4)
    else:
        torch.save(content, source, _use_new_zipfile_serialization=layout == "zip")
    assert "builtins.exec" in refused(command, source)
    assert not target.exists()


def test_a_harmless_name_of_another_package_is_refused_too(tmp_path: Path) -> None:
    source = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "extra": argparse.ArgumentTypeError}, source)
    assert "argparse.ArgumentTypeError" in refused("import-tokenizer", source)


def wrong_files(folder: Path) -> dict[str, Path]:
    """Files that are no published checkpoint -> what must be said of them."""
    files = {name: folder / f"{index}.ckpt" for index, name in enumerate(WRONG)}
    whole = write_vqgan(folder / "whole.ckpt", vqgan_state(vqgan_model()))
    files["an empty file"].touch()
    files["a text file"].write_text("ceci n'est pas un checkpoint\n")
    files["a web page"].write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    files["Git LFS pointer"].write_text("version https://git-lfs.github.com/spec/v1\n")
    files["unknown kind"].write_bytes(bytes(range(256)))
    files["damaged or truncated zip"].write_bytes(whole.read_bytes()[:-900])
    save_file({"x": torch.zeros(2)}, files["a safetensors file"])
    torch.save({"Conv3d_1a_7x7.conv3d.weight": torch.zeros(2)}, files["an I3D network"])
    torch.save({"fc.weight": torch.zeros(2)}, files["something unknown"])
    torch.save([1, 2], files["no `state_dict`"])
    files["none that torch.save wrote"].write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with zipfile.ZipFile(files["a zip file, but none"], "w") as archive:
        archive.writestr("hello.txt", "hello")
    with zipfile.ZipFile(files["TorchScript"], "w") as archive:
        for name in ("i3d/data.pkl", "i3d/constants.pkl"):
            archive.writestr(name, b"\x80\x02N.")
    legacy = write_old_vqgan(folder / "legacy.ckpt", vqgan_state(vqgan_model()))
    files["is damaged, or was not"].write_bytes(legacy.read_bytes()[:20_000])
    return files


WRONG = (
    *("an empty file", "a text file", "a web page", "Git LFS pointer", "unknown kind"),
    *("damaged or truncated zip", "a safetensors file", "an I3D network", "something unknown"),
    *("no `state_dict`", "none that torch.save wrote", "a zip file, but none", "TorchScript"),
    "is damaged, or was not",
)


@pytest.mark.parametrize("saying", WRONG)
def test_a_wrong_file_says_what_it_looks_like(tmp_path: Path, saying: str) -> None:
    source = wrong_files(tmp_path)[saying]
    for command in OUTPUTS:
        output = refused(command, source)
        assert saying in output
        assert len(output.splitlines()) == 1


def test_each_command_points_to_the_other(vqgan: Path, mebt: Path) -> None:
    assert "looks like a VQGAN, not like a MeBT" in refused("import-model", vqgan)
    assert "mebt import-model" in refused("import-tokenizer", mebt)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, vqgan: Path) -> None:
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(vqgan) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/99", bytes(50_000_000))
    assert "is compressed" in refused("import-tokenizer", bomb)


def test_a_flipped_byte_is_found(tmp_path: Path, vqgan: Path) -> None:
    with zipfile.ZipFile(vqgan) as archive:
        info = max(archive.infolist(), key=lambda member: member.file_size)
    data = bytearray(vqgan.read_bytes())
    data[info.header_offset + info.file_size // 2] ^= 1
    vqgan.write_bytes(data)
    assert "the checksum of" in refused("import-tokenizer", vqgan)


def test_a_tensor_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    state = vqgan_state(vqgan_model())
    state["codebook.embeddings"] = torch.zeros(1, 1).expand(1 << 40, 5)
    source = write_vqgan(tmp_path / "huge.ckpt", state, n_codes=1 << 40)
    assert "'codebook.embeddings' claims" in refused("import-tokenizer", source)


@pytest.mark.parametrize("name", ["n_codes", "embedding_dim", "n_hiddens"])
def test_a_huge_hyper_parameter_costs_no_memory(tmp_path: Path, name: str) -> None:
    source = write_vqgan(tmp_path / "v.ckpt", vqgan_state(vqgan_model()), **{name: 1 << 50})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(1 << 50) in refused("import-tokenizer", source)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 18  # KiB: a quarter of a gigabyte, where the claim is of millions.


def test_layers_that_are_not_there_are_not_built(tmp_path: Path) -> None:
    params = {**CONFIG["model"]["params"], "n_layer": 10**9}
    config = {**CONFIG, "model": {**CONFIG["model"], "params": params}}
    state = mebt_state(mebt_model(), vqgan_model())
    source = write_mebt(tmp_path / "m.ckpt", state, config)
    assert "n_layer is 1000000000, but it has 3 layers" in refused("import-model", source)


def change(state: OrderedDict, what: str) -> str:
    """Spoils one tensor; returns what must be said."""
    key = "decoder.conv_last.conv.bias"
    inside = next(name for name in state if name.endswith(key))
    if what == "missing":
        del state[inside]
        return "decoder.head.bias: ours [3], theirs is missing"
    if what == "shape":
        state[inside] = torch.zeros(4)
        return f"decoder.head.bias: ours [3], theirs [4] ({inside})"
    if what in ("nan", "inf"):
        state[inside] = torch.tensor([0.0, 1.0, float(what)])
        return f"{inside}: holds values that are not finite"
    if what == "kind":
        state[inside] = torch.zeros(3, dtype=torch.long)
        return "theirs torch.int64"
    if what == "shared":
        state[inside] = state[inside.replace("decoder.conv_last", "encoder.conv_first")]
        return "shares its memory with"
    if what == "not a tensor":
        state[inside] = 5
        return f"{inside!r} of its state is no tensor but a int"
    state["surprise.weight"] = torch.zeros(1)
    return "unknown tensor 'surprise.weight'"


@pytest.mark.parametrize(
    "what", ["missing", "shape", "nan", "inf", "kind", "shared", "not a tensor", "unknown"]
)
def test_every_tensor_must_fit(tmp_path: Path, what: str) -> None:
    state = vqgan_state(vqgan_model())
    expected = change(state, what)
    assert expected in refused("import-tokenizer", write_vqgan(tmp_path / "v.ckpt", state))
    state = mebt_state(mebt_model(), vqgan_model())
    expected = change(state, what)
    assert expected in refused("import-model", write_mebt(tmp_path / "m.ckpt", state))


def test_several_misfits_get_a_line_each(tmp_path: Path) -> None:
    state = mebt_state(mebt_model(), vqgan_model())
    state["pos_emb"] = torch.zeros(1, 99, 12)
    del state["mask_emb"]
    output = refused("import-model", write_mebt(tmp_path / "m.ckpt", state))
    assert "2 tensors do not fit:" in output
    assert "  position_embedding: ours [18, 12], theirs [99, 12] (pos_emb)\n" in output
    assert "  mask_embedding: ours [12], theirs is missing\n" in output


@pytest.mark.parametrize(
    ("args", "saying"),
    [
        ({"downsample": [2, 8, 8]}, "needs 3 stages, but the VQGAN has 2"),
        ({"downsample": [2, 4]}, "downsample must be three numbers"),
        ({"downsample": [3, 4, 4]}, "downsample must be powers of two"),
        ({"norm_type": "layer"}, "norm_type is 'layer'; known: group, batch"),
        ({"padding_type": "mirror"}, "padding_type is 'mirror'"),
        ({"padding_type": ["zeros"]}, "padding_type is ['zeros']"),
        ({"n_codes": "many"}, "'n_codes' must be whole, found 'many'"),
    ],
)
def test_senseless_hyper_parameters_are_named(tmp_path: Path, args: dict, saying: str) -> None:
    source = write_vqgan(tmp_path / "v.ckpt", vqgan_state(vqgan_model()), **args)
    assert saying in refused("import-tokenizer", source)
