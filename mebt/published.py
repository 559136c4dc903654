"""The published MeBT checkpoints: their key names and hyper-parameters, and ours."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mebt.config import MeBTConfig

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


def convert_layers(modes: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """Names the layers; a list that is too short goes on with `dense`, as published."""
    padded = [*modes, *["maskgit"] * (num_layers - len(modes))]
    if unknown := set(padded) - set(LAYER_NAMES):
        raise ValueError(f"unknown published layer {min(unknown)!r}.")
    return tuple(LAYER_NAMES[mode] for mode in padded)


def config_from_hparams(hparams: Mapping[str, Any], *, codebook_size: int) -> MeBTConfig:
    """Builds our config from the published `model.params` and the mask's `shape`."""
    t, h, w = (int(size) for size in hparams["shape"])
    return MeBTConfig(
        layers=convert_layers(hparams["mode"], hparams["n_layer"]),
        width=hparams["n_embd"],
        num_heads=hparams["n_head"],
        num_latents=hparams["sos_emb"],
        embedding_dropout=hparams.get("embd_pdrop", 0.0),
        residual_dropout=hparams.get("resid_pdrop", 0.0),
        attention_dropout=hparams.get("attn_pdrop", 0.0),
        codebook_size=codebook_size,
        grid=(t, h, w),
    )


def convert_name(key: str) -> str:
    """Returns our name of a published tensor. Raises ValueError if there is none."""
    for old, new in RENAMED:
        if re.match(old, key):
            return re.sub(old, new, key)
    raise ValueError(f"unknown tensor {key!r} in a published MeBT.")


def convert_state(state: Mapping[str, Tensor], config: MeBTConfig) -> dict[str, Tensor]:
    """Renames published tensors to ours and drops their leading axes of one."""
    ours = {convert_name(key): tensor for key, tensor in state.items()}
    for name in ("position_embedding", "latents"):
        if name in ours:
            ours[name] = ours[name][0]
    ours["mask_embedding"] = ours["mask_embedding"].flatten()
    if config.num_latents == 0:  # Published models without latents have no such tensor.
        ours["latents"] = ours["token_embedding.weight"].new_empty(0, config.width)
    return ours
