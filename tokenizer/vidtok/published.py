"""Translates names and hyper-parameters of published VidTok checkpoints."""

import re
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from tokenizer.ladder_names import SHARED, our_name
from tokenizer.vidtok.config import VidTokConfig

SIGN = re.compile(r"encoder\.down_temporal\.")
"""Start of names that only VidTok's networks have."""

PARTS = (
    (r"\.conv\.", "."),
    *SHARED,
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.mix_factor$", ".mix"),
    (r"\.(?:down|up)_temporal\.(\d+)\.(?:down|up)sample\.", r".resolutions.\1.resize.time."),
    (r"\.(?:down|up)\.(\d+)\.(?:down|up)sample\.", r".resolutions.\1.resize.space."),
    (r"\.(?:down|up)_temporal\.(\d+)\.block\.(\d+)\.", r".resolutions.\1.blocks.\2.time."),
    (r"\.(?:down|up)\.(\d+)\.block\.(\d+)\.", r".resolutions.\1.blocks.\2.space."),
)
"""Parts of a published name -> ours, as patterns."""

IGNORED = {
    "loss.": "a loss's network, needed for training only",
    "model_ema.": "moving averages, which published decoding does not use",
}
ENCODERS = {
    f"vidtok.modules.model_3dcausal{version}.EncoderCausal3DPadding": still
    for version, still in (("", False), ("_v1_1", True))
}
"""What a YAML calls the encoder -> whether it sees the first frame before it, or zeros."""
REGULARIZERS = ("vidtok.modules.regularizers.FSQRegularizer",)


def config_from_yaml(tree: Mapping[str, Any]) -> VidTokConfig:
    """Builds our config from a published YAML. Raises ValueError on what is none of this kind."""
    params = _at(tree, "model.params")
    for section, known in (("encoder_config", ENCODERS), ("regularizer_config", REGULARIZERS)):
        if (target := _at(params, section).get("target")) not in known:
            raise ValueError(
                f"its {section} is {target!r}, but only causal networks with levels (FSQ) are "
                f"read: {', '.join(known)}."
            )
    shape = _at(params, "encoder_config.params")
    decoder = _at(params, "decoder_config").get("params")
    if isinstance(decoder, Mapping) and decoder != shape:
        raise ValueError("its decoder has other values than its encoder, which is not known.")
    wanted = {"norm_type": "layernorm", "init_pad_mode": "replicate", "double_z": False}
    for name, value in wanted.items():
        if shape.get(name) != value:
            raise ValueError(f"its {name} is {shape.get(name)!r}, but only {value!r} is known.")
    multipliers = tuple(_at(shape, "ch_mult", list))
    last = len(multipliers) - 1
    modes = {"nearest": False, "trilinear": True}
    still = ENCODERS[params["encoder_config"]["target"]]
    mode = shape.get("interpolation_mode", "nearest") if still else "nearest"
    if mode not in modes:
        raise ValueError(f"its interpolation_mode is {mode!r}; known: {', '.join(modes)}.")
    config = VidTokConfig(
        levels=tuple(_at(params, "regularizer_config.params.levels", list)),
        width=_at(shape, "ch", int),
        multipliers=multipliers,
        blocks=_at(shape, "num_res_blocks", int),
        halved=tuple(shape.get("tempo_ds") or (last - 2, last - 1)),
        doubled=tuple(shape.get("tempo_us") or (1, 2)),
        still=still,
        linear=modes[mode],
    )
    factor, entries = _at(shape, "time_downsample_factor", int), _at(shape, "z_channels", int)
    if (factor, entries) != (config.downsample[0], config.embedding_dim):
        raise ValueError(
            f"its time_downsample_factor {factor} and z_channels {entries} do not fit its layers, "
            f"which make {config.downsample[0]} and {config.embedding_dim}."
        )
    return config


def _at(tree: Mapping[str, Any], path: str, kind: type = dict) -> Any:
    """Returns what is at a dotted path. Raises ValueError if it is not there, or not a `kind`."""
    value: Any = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"it has no usable {path!r}: {value!r}.")
    return value


def sort_names(
    state: Mapping[str, Tensor], config: VidTokConfig
) -> tuple[dict[str, str], dict[str, str]]:
    """Sorts published names into ours and those to leave out.

    Returns our name -> the published one, and the names that were left out with the reason.
    """
    ours: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in state:
        if reason := next((why for start, why in IGNORED.items() if key.startswith(start)), None):
            ignored[key] = reason
        else:
            ours[our_name(key, PARTS, resolutions=len(config.multipliers))] = key
    return ours, ignored


def as_3d(tensor: Tensor) -> Tensor:
    """Returns the weight of a convolution in space, or in time, as that of one in both."""
    if tensor.ndim == 4:
        return rearrange(tensor, "d c h w -> d c 1 h w")
    return rearrange(tensor, "d c t -> d c t 1 1") if tensor.ndim == 3 else tensor
