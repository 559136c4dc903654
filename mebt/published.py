"""Translates names, hyper-parameters and optimizer states of published MeBT checkpoints."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mebt.config import MeBTConfig, MeBTShape
from mebt.model import MeBT
from mebt.optim import make_optimizer

LAYER_NAMES = {
    "latent_enc": "encode",
    "latent_self": "process",
    "latent_dec": "decode",
    "lt2l": "refresh",
    "maskgit": "dense",
}

RENAMED = (
    (r"tok_emb\.weight$", "token_embedding.weight"),
    (r"mask_emb$", "mask_embedding"),
    (r"sos_emb$", "latents"),
    (r"pos_emb$", "position_embedding"),
    (r"transformer\.blocks\.(\d+)\.ln1\.", r"blocks.\1.norm."),
    (r"transformer\.blocks\.(\d+)\.ln2\.", r"blocks.\1.norm_mlp."),
    (r"transformer\.blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
    (r"transformer\.blocks\.(\d+)\.attn\.(query|key|value)\.", r"blocks.\1.attention.\2."),
    (r"transformer\.blocks\.(\d+)\.mlp\.(\d)\.", r"blocks.\1.mlp.\2."),
    (r"transformer\.ln_f\.", "norm."),
    (r"transformer\.head\.", "head."),
)
"""Published name -> ours, as patterns."""

LINEAR_WEIGHT = r"transformer\.(head|blocks\.\d+\.(attn|mlp)\.\w+)\.weight"
NUMBERS = ("n_layer", "n_embd", "n_head", "sos_emb")
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter beside its number of updates."""


def convert_layers(modes: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """Names the layers; a list that is too short goes on with `dense`, as published."""
    padded = [*modes, *["maskgit"] * (num_layers - len(modes))]
    if unknown := set(padded) - set(LAYER_NAMES):
        raise ValueError(f"unknown published layer {min(unknown)!r}.")
    return tuple(LAYER_NAMES[mode] for mode in padded)


def shape_from_hparams(hparams: Mapping[str, Any]) -> MeBTShape:
    """Builds the model's shape from the published `model.params`.

    Raises ValueError, naming the first one that is missing or senseless.
    """
    for name in NUMBERS:
        value = hparams.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"the MeBT's hyper-parameter {name!r} must be whole, found {value!r}.")
    modes, num_layers = hparams.get("mode"), hparams["n_layer"]
    if not isinstance(modes, list | tuple) or not all(isinstance(m, str) for m in modes):
        raise ValueError(f"the MeBT's hyper-parameter 'mode' must list layers, found {modes!r}.")
    if len(modes) > num_layers:
        raise ValueError(f"the MeBT has n_layer {num_layers}, but its mode lists {len(modes)}.")
    return MeBTShape(
        layers=convert_layers(modes, num_layers),
        width=hparams["n_embd"],
        num_heads=hparams["n_head"],
        num_latents=hparams["sos_emb"],
        block="published",
        embedding_dropout=float(hparams.get("embd_pdrop", 0.0)),
        residual_dropout=float(hparams.get("resid_pdrop", 0.0)),
        attention_dropout=float(hparams.get("attn_pdrop", 0.0)),
    )


def config_from_hparams(hparams: Mapping[str, Any], *, codebook_size: int) -> MeBTConfig:
    """Builds our config from the published `model.params` and the mask's `shape`."""
    grid = hparams.get("shape")
    if not isinstance(grid, list | tuple) or len(grid) != 3:
        raise ValueError(f"the MeBT's mask shape must be three numbers, found {grid!r}.")
    t, h, w = (int(size) for size in grid)
    shape = dataclasses.asdict(shape_from_hparams(hparams))
    return MeBTConfig(**shape, codebook_size=codebook_size, grid=(t, h, w))


def config_of_state(
    state: Mapping[str, Tensor], hparams: Mapping[str, Any], *, codebook_size: int
) -> MeBTConfig:
    """Builds our config as `config_from_hparams` does, for these published tensors.

    Raises ValueError if they are of another number of layers, before any is built.
    """
    if hparams.get("n_layer") != (layers := num_blocks(state)):
        raise ValueError(f"n_layer is {hparams.get('n_layer')}, but it has {layers} layers.")
    return config_from_hparams(hparams, codebook_size=codebook_size)


def num_blocks(names: Iterable[str]) -> int:
    """Counts the layers among published tensor names."""
    matches = (re.match(r"transformer\.blocks\.(\d+)\.", name) for name in names)
    return len({match[1] for match in matches if match})


def convert_name(key: str) -> str:
    """Returns our name of a published tensor. Raises ValueError if there is none."""
    for old, new in RENAMED:
        if re.match(old, key):
            return re.sub(old, new, key)
    raise ValueError(f"unknown tensor {key!r} in a published MeBT.")


def convert_state(state: Mapping[str, Tensor], config: MeBTConfig) -> dict[str, Tensor]:
    """Renames published tensors to ours and drops their leading axes of one."""
    ours = {convert_name(key): tensor for key, tensor in state.items()}
    for name, axes in (("position_embedding", 2), ("latents", 2), ("mask_embedding", 1)):
        while name in ours and ours[name].ndim > axes and len(ours[name]) == 1:
            ours[name] = ours[name][0]
    if config.num_latents == 0:  # Published models without latents have no such tensor.
        ours.setdefault("latents", torch.empty(0, config.width))
    return ours


def optimizer_groups(names: Iterable[str]) -> list[list[str]]:
    """Sorts published parameters into the groups of the published optimizer, in its order.

    Its state numbers parameters by their place here: Linear weights, the only ones that decay,
    embeddings, biases and norms, positions.
    """
    left = set(names)
    linear = {name for name in left if re.fullmatch(LINEAR_WEIGHT, name)}
    embeddings = left & {"mask_emb", "sos_emb", "tok_emb.weight"}
    rest = left - linear - embeddings - {"pos_emb"}
    return [sorted(linear), sorted(embeddings), sorted(rest), ["pos_emb"]]


def convert_moments(moments: Mapping[str, Tensor], config: MeBTConfig) -> dict[str, Tensor]:
    """Renames AdamW's moments, such as `NAME.exp_avg`, as `convert_state` does NAME."""
    ours: dict[str, Tensor] = {}
    for kind in MOMENTS:
        end = f".{kind}"
        of_kind = {key.removesuffix(end): t for key, t in moments.items() if key.endswith(end)}
        ours |= {name + end: tensor for name, tensor in convert_state(of_kind, config).items()}
    return ours


def resumed_optimizer(
    model: MeBT, moments: Mapping[str, Tensor], steps: Mapping[str, int]
) -> torch.optim.Optimizer:
    """Returns our AdamW as it is after `steps` updates of each parameter, with their moments.

    Both are by our names, as `convert_moments` gives them. Its learning rate and weight decay mean
    nothing: a run that goes on from it sets its own.
    """
    optimizer = make_optimizer(model, learning_rate=1.0, weight_decay=0.0)
    for name, count in steps.items():
        entry = {kind: moments[f"{name}.{kind}"].float() for kind in MOMENTS}
        step = torch.tensor(float(count))
        optimizer.state[model.get_parameter(name)] = {"step": step, **entry}
    return optimizer
