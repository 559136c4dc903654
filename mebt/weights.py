"""The model's own file: weights as safetensors, the config as JSON in its header."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mebt.config import MeBTConfig, StateShape
from mebt.model import MeBT
from weights.file import Format, load_tensors, no_config, read_header, save

MODEL_FILE = "model.safetensors"
"""What a model's file is called in the folder of its run."""
CONDITION_FIELDS = ("conditions", "labels", "states")
"""What of a config says which conditions a model knows."""
FORMAT = Format("mebt-model-1", what="a model", command="mebt train")


def save_model(path: Path, model: MeBT, *, extra: Mapping[str, str] | None = None) -> None:
    """Writes weights, config and `extra` to one `.safetensors` file."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    config = json.dumps(config_fields(model.config), sort_keys=True)
    save(path, FORMAT, tensors, config, extra or {})


def config_fields(config: MeBTConfig) -> dict[str, Any]:
    """Returns what a header says of a config: of conditions nothing, if there are none."""
    fields = dataclasses.asdict(config)
    if not config.conditions:
        for name in CONDITION_FIELDS:
            del fields[name]
    return fields


def model_metadata(path: Path) -> dict[str, str]:
    """Reads the header: `config` as JSON, and what `save_model` was given as `extra`.

    Raises ValueError, in one line, if the file is damaged or of another format.
    """
    return read_header(path, FORMAT)


def read_config(path: Path) -> MeBTConfig:
    """Reads the config in a model's header. Raises ValueError as `model_metadata` does."""
    metadata = model_metadata(path)
    try:
        fields: dict[str, Any] = {"block": "published"}  # Files from before there was a choice.
        fields |= json.loads(metadata["config"])
        fields["layers"] = tuple(fields["layers"])
        fields["grid"] = tuple(fields["grid"])
        for name in ("conditions", "labels"):
            fields[name] = tuple(fields.get(name, ()))
        fields["states"] = tuple(_state(state) for state in fields.get("states", ()))
        return MeBTConfig(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise no_config(path, error) from None


def _state(fields: Mapping[str, Any]) -> StateShape:
    numbers = {name: tuple(map(float, fields[name])) for name in ("mean", "std")}
    return StateShape(**{**fields, **numbers})


def load_model(path: Path, device: str = "cpu") -> MeBT:
    """Loads a model, frozen and in evaluation mode.

    Raises ValueError, in one line, if the file is damaged, of another format, or does not fit.
    """
    metadata = model_metadata(path)
    config = read_config(path)
    with torch.device("meta"):  # A header may claim any size: compare before allocating.
        model = MeBT(config)
    tensors = load_tensors(path, model.state_dict(), metadata)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False).to(device)


def assemble(config: MeBTConfig, weights: Mapping[str, torch.Tensor]) -> MeBT:
    """Makes a model of these very tensors, without drawing random weights first."""
    with torch.device("meta"):
        model = MeBT(config)
    model.load_state_dict(weights, assign=True)
    return model


def weights_identity(path: Path) -> str:
    """Returns the SHA-256 of the model's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
