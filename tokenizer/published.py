"""The published TATS checkpoints: their key names and hyper-parameters, and ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenizer.config import VQGANConfig

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

IGNORED = {
    "image_discriminator.": "a discriminator, needed for adversarial training only",
    "video_discriminator.": "a discriminator, needed for adversarial training only",
    "perceptual_model.": "the perceptual loss's network, needed for training only",
}


def config_from_args(args: Mapping[str, Any]) -> VQGANConfig:
    """Builds our config from the published hyper-parameters (`args` of the checkpoint)."""
    downsample = tuple(int(factor) for factor in args["downsample"])
    return VQGANConfig(
        codebook_size=args["n_codes"],
        embedding_dim=args["embedding_dim"],
        width=args["n_hiddens"],
        downsample=(downsample[0], downsample[1], downsample[2]),
        norm=args["norm_type"],
        padding=args.get("padding_type", "replicate"),
        in_channels=args.get("image_channels", 3),
    )


def convert_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames published tensors to ours.

    Returns our tensors, and the keys that were left out with the reason. Raises ValueError on a
    key that is neither.
    """
    ours: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for key, tensor in state.items():
        reason = next((why for start, why in IGNORED.items() if key.startswith(start)), None)
        rename = next(((old, new) for old, new in RENAMED if re.match(old, key)), None)
        if rename:
            ours[re.sub(*rename, key)] = tensor
        elif reason:
            ignored[key] = reason
        else:
            raise ValueError(f"unknown tensor {key!r} in a published VQGAN.")
    return ours, ignored


def discriminator_state(state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Returns the tensors of our `Discriminator`; `which` is `image` or `video`."""
    start = rf"{which}_discriminator\.model(\d+)\."
    return {re.sub(start, r"layers.\1.", k): v for k, v in state.items() if re.match(start, k)}
