"""One file for a model: its tensors as safetensors, and in the header its config and checksums."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

HEADER = "mebt"
"""The one key of the file's metadata: safetensors writes several in an order drawn by chance."""


@dataclass(frozen=True)
class Format:
    """A kind of file, as its header and messages name it."""

    name: str
    """With the version of the format."""
    what: str
    command: str
    """Which makes one."""


def save(
    path: Path,
    format: Format,
    tensors: Mapping[str, Tensor],
    config: str,
    extra: Mapping[str, str],
) -> None:
    """Writes tensors on the CPU, a config as JSON, and what else there is to say."""
    header = {"format": format.name, "config": config, "tensors": _digest(tensors), **extra}
    header["header"] = _seal(header)
    save_file(dict(tensors), path, {HEADER: json.dumps(header, sort_keys=True)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(header: Mapping[str, str]) -> str:
    """Returns the SHA-256 of what a header says."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def read_header(path: Path, format: Format) -> dict[str, str]:
    """Reads what a file says: `config` as JSON, and what else it was saved with.

    Raises ValueError, in one line, if it is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {str(error).rstrip('.')}."
        ) from None
    metadata: dict[str, str] = header if isinstance(header, dict) else {}
    if metadata.get("format") != format.name:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, but {format.what} of this version has "
            f"{format.name!r}; make one with `{format.command}`."
        )
    seal = metadata.pop("header", None)  # Of files of the first versions there is none.
    if seal is not None and seal != _seal(metadata):
        raise ValueError(f"{path} is damaged: its header is not the one that was written.")
    return metadata


def no_config(path: Path, error: Exception) -> ValueError:
    """Makes the error for a header whose config cannot be used."""
    return ValueError(f"{path}: its header holds no usable config: {str(error).rstrip('.')}.")


def load_tensors(
    path: Path, expected: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Reads tensors of these names and shapes, on whatever device the expected ones are.

    Raises ValueError, in one line, if others are there, or values that were not written.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    if different := sorted(names ^ expected.keys()):
        whose = "lacks" if different[0] in expected else "has an unknown"
        raise ValueError(f"{path} {whose} tensor {different[0]!r}; it does not fit its config.")
    tensors = {}
    for name in names:
        tensor = _read_tensor(path, name)
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, but its config asks for "
                f"{list(expected[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds values that are not finite.")
        tensors[name] = tensor
    if metadata.get("tensors") not in (None, _digest(tensors)):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written.")
    return tensors


def _read_tensor(path: Path, name: str) -> Tensor:
    """Copies one tensor out of the file, which is mapped only while it lasts.

    As long as it is, whatever was read of it counts as memory: all weights would be held twice.
    """
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor.clone()
