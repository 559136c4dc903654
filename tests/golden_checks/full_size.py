"""The published models at full size: names, shapes and counts of their tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mebt import MeBT, MeBTConfig, MeBTShape
from mebt.published import config_from_hparams, convert_name, convert_state
from pipeline.config import load_section
from pipeline.published.mebt_checkpoint import FIRST_STAGE
from pipeline.windows.plan import TokenizeConfig
from tests.golden_checks.recipe import load_meta
from tokenizer import VQGAN, VQGANConfig
from tokenizer.published import OURS_ONLY, args_from_state, config_from_args
from tokenizer.published import convert_state as convert_vqgan

CONFIGS = Path(__file__).parents[2] / "configs"
OUR_NAMES = {"stl": "sky"}
ONLY = "_transformer_only"
I3D = "i3d_400"


def on_meta(build: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return build(config)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def read_state(case: Path, name: str) -> dict[str, Tensor] | None:
    """Published names -> tensors without data, if the case lists them."""
    path = case / f"{name}.json"
    if not path.exists():
        return None
    listed = json.loads(path.read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape, *_ in listed}


def check_vqgan(config: VQGANConfig, entry: dict, state: dict[str, Tensor] | None) -> None:
    model = on_meta(VQGAN, config)
    by_module = entry["parameters_by_module"]
    for ours, theirs in (
        ("encoder", "encoder"),
        ("decoder", "decoder"),
        ("to_embedding", "pre_vq_conv"),
        ("from_embedding", "post_vq_conv"),
    ):
        assert count(model.get_submodule(ours)) == by_module[theirs]
    if state is not None:
        tensors, ignored = convert_vqgan(state)
        expected = {k: v for k, v in model.state_dict().items() if k not in OURS_ONLY}
        assert shapes(tensors) == shapes(expected)
        assert len(tensors) + len(ignored) == entry["n_keys"]


def check_mebt(config: MeBTConfig, number: int, state: dict[str, Tensor] | None) -> None:
    model = on_meta(MeBT, config)
    assert count(model) == number
    if state is not None:
        assert {convert_name(key) for key in state} == model.state_dict().keys()
        assert shapes(convert_state(state, config)) == shapes(model.state_dict())


def config_of(entry: dict) -> MeBTConfig:
    model = entry["config"]["model"]
    hparams = {**model["params"], "shape": model["mask"]["params"]["shape"]}
    return config_from_hparams(hparams, codebook_size=model["params"]["vocab_size"])


def shipped_config(name: str) -> MeBTConfig:
    """Reads the model of `taichi_mebt_16f`, say, off configs/taichi_16f.yaml."""
    data, _, frames = name.split("_")
    path = CONFIGS / f"{OUR_NAMES.get(data, data)}_{frames}.yaml"
    vqgan = load_section(path, "tokenizer", VQGANConfig)
    windows = load_section(path, "tokenize", TokenizeConfig)
    grid = vqgan.grid(windows.frames, windows.size, windows.size)
    shape = vars(load_section(path, "model", MeBTShape))
    return MeBTConfig(**shape, codebook_size=vqgan.codebook_size, grid=grid)


def check_with_first_stage(case: Path, name: str, entry: dict, summary: dict) -> None:
    config, modules = config_of(entry), entry["parameters_by_module"]
    own = entry["n_parameters"] - modules["first_stage_model"]
    state = read_state(case, name)
    if state is None:
        check_mebt(config, own, None)
        return
    assert len(state) == entry["n_keys"]
    inner = {
        key.removeprefix(FIRST_STAGE): tensor
        for key, tensor in state.items()
        if key.startswith(FIRST_STAGE)
    }
    outer = {key: tensor for key, tensor in state.items() if not key.startswith(FIRST_STAGE)}
    check_mebt(config, own, outer)
    data, grid = entry["config"]["data"], config.grid
    factors = (data["sequence_length"] // grid[0], *(data["resolution"] // n for n in grid[1:]))
    vqgan = config_from_args(args_from_state(inner, downsample=factors))
    stored = next(e for e in summary.values() if e.get("args", {}).get("norm_type") == vqgan.norm)
    assert vqgan == config_from_args(stored["args"])
    check_vqgan(vqgan, stored, inner)


def check_full_size(case: Path, summary: dict[str, dict]) -> None:
    for name, entry in summary.items():
        state = read_state(case, name)
        if "args" in entry:
            check_vqgan(config_from_args(entry["args"]), entry, state)
        elif "config" in entry:
            check_with_first_stage(case, name, entry, summary)
        elif name.endswith(ONLY):
            whole = summary[name.replace(ONLY, "_with_first_stage")]
            check_mebt(config_of(whole), entry["n_parameters"], state)
            check_mebt(shipped_config(name.removesuffix(ONLY)), entry["n_parameters"], state)
            assert state is None or len(state) == entry["n_keys"]
        elif "n_parameters_transformer_only" in entry:
            frames = name.rpartition("_")[2]  # Data sets differ in training values only.
            twin = next(other for other in summary if other.endswith(f"_{frames}{ONLY}"))
            number = entry["n_parameters_transformer_only"]
            check_mebt(shipped_config(name), number, read_state(case, twin))
        elif name != I3D:  # The FVD network's own golden case checks it.
            pytest.fail(f"{case.name}: no check knows the entry {name!r}.")


def check_kindless(case: Path) -> None:
    """A case without a kind is known by what it holds: a summary of whole models."""
    summary = load_meta(case).get("summary")
    if not isinstance(summary, dict) or not all(
        "n_keys" in e or len(e) == 1 for e in summary.values()
    ):
        pytest.fail(f"{case.name}: its meta.json has no kind, and no check knows its content.")
    check_full_size(case, summary)


CHECKS = {None: check_kindless}
