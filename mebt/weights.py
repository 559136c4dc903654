"""The model's own file: weights as safetensors, the config as JSON in its header."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mebt.config import MeBTConfig
from mebt.model import MeBT

FORMAT = "mebt-model-1"
HEADER = "mebt"
"""The one key of the file's metadata: safetensors writes several in an order drawn by chance."""


def save_model(path: Path, model: MeBT, *, extra: Mapping[str, str] | None = None) -> None:
    """Writes weights, config and `extra` to one `.safetensors` file."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    config = json.dumps(dataclasses.asdict(model.config), sort_keys=True)
    header = {"format": FORMAT, "config": config, "tensors": _digest(tensors), **(extra or {})}
    header["header"] = _seal(header)
    save_file(tensors, path, {HEADER: json.dumps(header, sort_keys=True)})


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(header: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what a header says."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def model_metadata(path: Path) -> dict[str, str]:
    """Reads the header: `config` as JSON, and what `save_model` was given as `extra`.

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
            f"{path} has format {metadata.get('format')!r}, but a model of this version has "
            f"{FORMAT!r}; make one with `mebt train`."
        )
    seal = metadata.pop("header", None)  # Of files of the first versions there is none.
    if seal is not None and seal != _seal(metadata):
        raise ValueError(f"{path} is damaged: its header is not the one that was written.")
    return metadata


def read_config(path: Path) -> MeBTConfig:
    """Reads the config in a model's header. Raises ValueError as `model_metadata` does."""
    metadata = model_metadata(path)
    try:
        fields: dict[str, Any] = {"block": "published"}  # Files from before there was a choice.
        fields |= json.loads(metadata["config"])
        fields["layers"] = tuple(fields["layers"])
        fields["grid"] = tuple(fields["grid"])
        return MeBTConfig(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its header holds no usable config: {str(error).rstrip('.')}."
        ) from None


def load_model(path: Path, device: str = "cpu") -> MeBT:
    """Loads a model, frozen and in evaluation mode.

    Raises ValueError, in one line, if the file is damaged, of another format, or does not fit.
    """
    metadata = model_metadata(path)
    config = read_config(path)
    with torch.device("meta"):  # A header may claim any size: compare before allocating.
        model = MeBT(config)
    expected = model.state_dict()
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    tensors = {name: _read_tensor(path, name) for name in names}
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
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False).to(device)


def assemble(config: MeBTConfig, weights: Mapping[str, torch.Tensor]) -> MeBT:
    """Makes a model of these very tensors, without drawing random weights first."""
    with torch.device("meta"):
        model = MeBT(config)
    model.load_state_dict(weights, assign=True)
    return model


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    """Copies one tensor out of the file, which is mapped only while it lasts.

    As long as it is, whatever was read of it counts as memory: all weights would be held twice.
    """
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor.clone()


def weights_identity(path: Path) -> str:
    """Returns the SHA-256 of the model's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
