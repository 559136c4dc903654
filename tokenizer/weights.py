"""The tokenizer's own file: weights as safetensors, the config as JSON in its header."""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer.codebook import Codebook
from tokenizer.config import VQGANConfig
from tokenizer.cosmos import Cosmos, CosmosConfig
from tokenizer.vidtok import VidTok, VidTokConfig
from tokenizer.vqgan import VQGAN
from weights.file import Format, load_tensors, no_config, read_header, save

Tokenizer = VQGAN | Cosmos | VidTok
"""Anything that encodes clips and decodes tokens."""
TokenizerConfig = VQGANConfig | CosmosConfig | VidTokConfig
KINDS: dict[str | None, tuple[Any, Any]] = {
    None: (VQGANConfig, VQGAN),
    CosmosConfig.kind: (CosmosConfig, Cosmos),
    VidTokConfig.kind: (VidTokConfig, VidTok),
}
"""What a header calls a kind -> its config and network; those of the first kind do not say it."""

TOKENIZER_FILE = "tokenizer.safetensors"
"""What a tokenizer's file is called in the folder of its run."""
FORMAT = Format("mebt-tokenizer-1", what="a tokenizer", command="mebt fit-tokenizer")
TRAINING_ONLY = ("counts", "sums", "initialized", "num_batches_tracked")
"""Last part of the names of tensors that encoding and decoding never read."""


def new_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Makes a tokenizer of random weights."""
    networks = dict(KINDS.values())
    made: Tokenizer = networks[type(config)](config)
    return made


def inference_tensors(model: Tokenizer) -> dict[str, Tensor]:
    """Returns the tensors that tokens and pictures depend on, by name."""
    state = model.state_dict()
    return {name: state[name] for name in sorted(state) if not name.endswith(TRAINING_ONLY)}


def _config_json(config: TokenizerConfig) -> str:
    return json.dumps(config.recorded(), sort_keys=True)


def identity(model: Tokenizer) -> str:
    """Returns the SHA-256 of the config and every tensor: equal ones, equal tokens and pictures."""
    digest = hashlib.sha256(_config_json(model.config).encode())
    for name, tensor in inference_tensors(model).items():
        data = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(data.shape)}".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def tokens_identity(model: Tokenizer) -> str:
    """Returns the identity by which token stores and models know the tokenizer of their tokens.

    It is that of another one if the decoder alone has learned since: `VQGAN.tokens_of`.
    """
    before = model.tokens_of if isinstance(model, VQGAN) else None
    return before or identity(model)


def save_tokenizer(
    path: Path, model: Tokenizer, *, extra: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Writes weights and config to one `.safetensors` file.

    `half` stores float16 where it can hold the values, about half the bytes; the rounded weights
    then have an identity of their own. What is bfloat16, as others publish it, is stored so, which
    is exact. Raises ValueError if a value is not finite.
    """
    tensors = {}
    for name, tensor in inference_tensors(model).items():
        kept = torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32
        exact = tensor.detach().to("cpu", kept).contiguous()
        if not torch.isfinite(exact).all():
            raise ValueError(f"tensor {name!r} holds values that are not finite; not saved.")
        tensors[name] = _half_if_it_fits(exact) if half else exact
    before = model.tokens_of if isinstance(model, VQGAN) else None
    more = {**(extra or {}), **({"tokens_of": before} if before else {})}
    save(path, FORMAT, tensors, _config_json(model.config), more)


def _half_if_it_fits(exact: Tensor) -> Tensor:
    rounded = exact.half()
    # Running variances of batch norm exceed float16's largest number, 65,504.
    return rounded if torch.isfinite(rounded).all() else exact


def as_half(model: VQGAN) -> VQGAN:
    """Returns a copy with the values that `save_tokenizer` stores of it with `half`."""
    copied = copy.deepcopy(model)
    for tensor in inference_tensors(copied).values():
        tensor.copy_(_half_if_it_fits(tensor))
    return copied


def tokenizer_metadata(path: Path) -> dict[str, str]:
    """Reads the header: `config` as JSON, and what `save_tokenizer` was given as `extra`.

    Raises ValueError, in one line, if the file is damaged or of another format.
    """
    return read_header(path, FORMAT)


def load_tokenizer(path: Path, device: str = "cpu") -> Tokenizer:
    """Loads a tokenizer, frozen and in evaluation mode.

    Raises ValueError, in one line, if the file is damaged, of another format, or does not fit.
    """
    metadata = tokenizer_metadata(path)
    config = _read_config(path, metadata)
    with torch.device("meta"):  # A header may claim any size: compare before allocating.
        expected = inference_tensors(new_tokenizer(config))
    tensors = load_tensors(path, expected, metadata)
    model = new_tokenizer(config)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    if isinstance(model.codebook, Codebook):
        # Files hold no moving averages: they start as if each vector had just been chosen.
        model.codebook.initialize(model.codebook.embeddings)
    if isinstance(model, VQGAN):
        model.tokens_of = _read_tokens_of(path, metadata)
    return model.eval().requires_grad_(False).to(device)


def _read_tokens_of(path: Path, metadata: Mapping[str, str]) -> str | None:
    before = metadata.get("tokens_of")
    if before is not None and not re.fullmatch("[0-9a-f]{64}", before):
        raise ValueError(f"{path} has tokens_of {before[:80]!r}, which is not a SHA-256.")
    return before


def _read_config(path: Path, metadata: Mapping[str, str]) -> TokenizerConfig:
    try:
        read = json.loads(metadata["config"])
        fields = {
            key: tuple(value) if type(value) is list else value for key, value in read.items()
        }
        kind = fields.pop("kind", None)
        if kind not in KINDS:
            raise ValueError(f"this version knows no tokenizer of kind {kind!r}.")
        config: TokenizerConfig = KINDS[kind][0](**fields)
        return config
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise no_config(path, error) from None
