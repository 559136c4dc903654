"""The tokenizer's own file: weights as safetensors, the config as JSON in its header."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenizer.codebook import Codebook
from tokenizer.config import VQGANConfig
from tokenizer.vqgan import VQGAN

FORMAT = "mebt-tokenizer-1"
HEADER = "mebt"
"""The one key of the file's metadata: safetensors writes several in an order drawn by chance."""
TRAINING_ONLY = ("counts", "sums", "initialized", "num_batches_tracked")
"""Last part of the names of tensors that encoding and decoding never read."""


def inference_tensors(model: VQGAN) -> dict[str, Tensor]:
    """Returns the tensors that tokens and pictures depend on, by name."""
    state = model.state_dict()
    return {name: state[name] for name in sorted(state) if not name.endswith(TRAINING_ONLY)}


def _config_json(config: VQGANConfig) -> str:
    return json.dumps(config.recorded(), sort_keys=True)


def identity(model: VQGAN) -> str:
    """Returns the SHA-256 of the config and every tensor: equal identities, equal tokens."""
    digest = hashlib.sha256(_config_json(model.config).encode())
    for name, tensor in inference_tensors(model).items():
        data = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(data.shape)}".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(
    path: Path, model: VQGAN, *, extra: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Writes weights and config to one `.safetensors` file.

    `half` stores float16 where it can hold the values, about half the bytes; the rounded weights
    then have an identity of their own. Raises ValueError if a value is not finite.
    """
    tensors = {}
    for name, tensor in inference_tensors(model).items():
        exact = tensor.detach().to("cpu", torch.float32).contiguous()
        if not torch.isfinite(exact).all():
            raise ValueError(f"tensor {name!r} holds values that are not finite; not saved.")
        tensors[name] = _half_if_it_fits(exact) if half else exact
    about = {"format": FORMAT, "config": _config_json(model.config), "tensors": _digest(tensors)}
    header = {**about, **(extra or {})}
    header["header"] = _seal(header)
    save_file(tensors, path, {HEADER: json.dumps(header, sort_keys=True)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seal(header: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what a header says."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


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
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {str(error).rstrip('.')}."
        ) from None
    metadata: dict[str, str] = header if isinstance(header, dict) else {}
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, but a tokenizer of this version has "
            f"{FORMAT!r}; make one with `mebt fit-tokenizer`."
        )
    seal = metadata.pop("header", None)  # Of files of the first versions there is none.
    if seal is not None and seal != _seal(metadata):
        raise ValueError(f"{path} is damaged: its header is not the one that was written.")
    return metadata


def load_tokenizer(path: Path, device: str = "cpu") -> VQGAN:
    """Loads a tokenizer, frozen and in evaluation mode.

    Raises ValueError, in one line, if the file is damaged, of another format, or does not fit.
    """
    metadata = tokenizer_metadata(path)
    config = _read_config(path, metadata)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):  # A header may claim any size: compare before allocating.
        expected = inference_tensors(VQGAN(config))
    if different := sorted(tensors.keys() ^ expected.keys()):
        whose = "lacks" if different[0] in expected else "has an unknown"
        raise ValueError(f"{path} {whose} tensor {different[0]!r}; it does not fit its config.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, but its config asks for "
                f"{list(expected[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds values that are not finite.")
    if metadata.get("tensors") not in (None, _digest(tensors)):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written.")
    model = VQGAN(config)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    if isinstance(model.codebook, Codebook):
        # Files hold no moving averages: they start as if each vector had just been chosen.
        model.codebook.initialize(model.codebook.embeddings)
    return model.eval().requires_grad_(False).to(device)


def _read_config(path: Path, metadata: Mapping[str, str]) -> VQGANConfig:
    try:
        fields = json.loads(metadata["config"])
        fields["downsample"] = tuple(fields["downsample"])
        fields["levels"] = tuple(fields.get("levels", ()))
        return VQGANConfig(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its header holds no usable config: {str(error).rstrip('.')}."
        ) from None
