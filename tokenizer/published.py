"""Translates names and hyper-parameters of published VQGAN checkpoints (TATS)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from tokenizer.config import Padding, VQGANConfig
from tokenizer.vqgan import VQGAN
from tokenizer.weights import inference_tensors

RENAMED = (
    (r"encoder\.conv_first\.conv\.", "encoder.stem."),
    (r"encoder\.conv_blocks\.(\d+)\.down\.conv\.", r"encoder.stages.\1.0."),
    (r"encoder\.conv_blocks\.(\d+)\.res\.(norm\d)\.", r"encoder.stages.\1.1.\2."),
    (r"encoder\.conv_blocks\.(\d+)\.res\.(conv\d)\.conv\.", r"encoder.stages.\1.1.\2."),
    (r"encoder\.final_block\.0\.", "encoder.norm."),
    (r"decoder\.final_block\.0\.", "decoder.norm."),
    (r"decoder\.conv_blocks\.(\d+)\.up\.convt\.", r"decoder.stages.\1.0."),
    (r"decoder\.conv_blocks\.(\d+)\.res(\d)\.(norm\d)\.", r"decoder.stages.\1.\2.\3."),
    (r"decoder\.conv_blocks\.(\d+)\.res(\d)\.(conv\d)\.conv\.", r"decoder.stages.\1.\2.\3."),
    (r"decoder\.conv_last\.conv\.", "decoder.head."),
    (r"pre_vq_conv\.conv\.", "to_embedding."),
    (r"post_vq_conv\.conv\.", "from_embedding."),
    (r"codebook\.embeddings$", "codebook.embeddings"),
    (r"codebook\.N$", "codebook.counts"),
    (r"codebook\.z_avg$", "codebook.sums"),
)
"""Published name -> ours, as patterns."""
OURS_ONLY = frozenset({"codebook.initialized"})
"""The published code initialises its codebook anew on every resume, and stores no such flag."""

IGNORED = {
    "image_discriminator.": "a discriminator, needed for adversarial training only",
    "video_discriminator.": "a discriminator, needed for adversarial training only",
    "perceptual_model.": "the perceptual loss's network, needed for training only",
    "loss.": "a loss's network, needed for training only",
}
"""Starts of published names -> why those tensors are left out."""
STATISTICS = "running statistics, needed for training only"
"""Codebook counts and sums, and how many batches a norm has seen."""

NORMS = ("group", "batch")
PADDINGS: dict[str, Padding] = {name: name for name in get_args(Padding)} | {"constant": "zeros"}
"""Published `padding_type` -> ours. `constant` is what torch's padding calls zeros."""


def config_from_args(args: Mapping[str, Any]) -> VQGANConfig:
    """Builds our config from the published hyper-parameters (`args` of the checkpoint).

    Raises ValueError, naming the first one that is missing or senseless.
    """
    if missing := [name for name in ("downsample", "norm_type") if name not in args]:
        raise ValueError(f"the VQGAN's hyper-parameters lack {missing[0]!r}.")
    factors = args["downsample"]
    if not isinstance(factors, list | tuple) or len(factors) != 3:
        raise ValueError(f"the VQGAN's downsample must be three numbers, found {factors!r}.")
    named = {axis: factor for axis, factor in zip("thw", factors, strict=True)}
    padding = args.get("padding_type", "replicate")  # Old checkpoints do not say.
    for name, value, known in (
        ("norm_type", args["norm_type"], NORMS),
        ("padding_type", padding, tuple(PADDINGS)),
    ):
        if value not in known:
            raise ValueError(f"the VQGAN's {name} is {value!r}; known: {', '.join(known)}.")
    return VQGANConfig(
        codebook_size=_whole(args, "n_codes"),
        embedding_dim=_whole(args, "embedding_dim"),
        width=_whole(args, "n_hiddens"),
        downsample=(_whole(named, "t"), _whole(named, "h"), _whole(named, "w")),
        norm=args["norm_type"],
        padding=PADDINGS[padding],
        in_channels=_whole({"image_channels": 3, **args}, "image_channels"),
    )


def _whole(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"the VQGAN's hyper-parameter {name!r} must be whole, found {value!r}.")
    return value


def num_stages(names: Iterable[str]) -> int:
    """Counts the encoder's down-sampling stages among published tensor names."""
    matches = (re.match(r"encoder\.conv_blocks\.(\d+)\.down\.", name) for name in names)
    return len({match[1] for match in matches if match})


def args_from_state(state: Mapping[str, Tensor], *, downsample: Sequence[int]) -> dict[str, Any]:
    """Returns the hyper-parameters that the shapes of a VQGAN's tensors tell.

    They do not tell `downsample`, since kernels are the same at every stride, nor the padding,
    which is taken to be `replicate`. Raises ValueError if the tensors to look at are missing.
    """
    shapes = {}
    for name, axes in (("codebook.embeddings", 2), ("encoder.conv_first.conv.weight", 5)):
        if name not in state or state[name].ndim != axes:
            raise ValueError(f"the VQGAN has no tensor {name!r} of {axes} axes.")
        shapes[name] = state[name].shape
    codes, embedding_dim = shapes["codebook.embeddings"]
    width, channels = shapes["encoder.conv_first.conv.weight"][:2]
    return {
        "n_codes": codes,
        "embedding_dim": embedding_dim,
        "n_hiddens": width,
        "downsample": list(downsample),
        "norm_type": "batch" if any(k.endswith("running_mean") for k in state) else "group",
        "image_channels": channels,
    }


def sort_names(state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Sorts published tensor names into ours and those to leave out.

    Returns our name -> the published one, and the names that were left out with the reason.
    Raises ValueError on a name that is neither.
    """
    ours: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in state:
        reason = next((why for start, why in IGNORED.items() if key.startswith(start)), None)
        rename = next(((old, new) for old, new in RENAMED if re.match(old, key)), None)
        if rename:
            ours[re.sub(*rename, key)] = key
        elif reason:
            ignored[key] = reason
        else:
            raise ValueError(f"unknown tensor {key!r} in a published VQGAN.")
    return ours, ignored


def unsaved_names(names: Mapping[str, str], model: VQGAN) -> dict[str, str]:
    """Returns the published names that `model` takes in and our file leaves out, with the reason.

    `names` is our name -> the published one.
    """
    saved = inference_tensors(model)
    return {names[name]: STATISTICS for name in names if name not in saved}


def convert_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames published tensors to ours.

    Returns our tensors, and the keys that were left out with the reason. Raises ValueError on a
    key that is neither.
    """
    ours, ignored = sort_names(state)
    return {name: state[key] for name, key in ours.items()}, ignored
