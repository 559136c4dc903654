"""Checkpoints that are whole or absent, and nothing in them that could run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import fingerprint
from pipeline.errors import CheckpointError
from pipeline.storage.files import (
    read_json,
    remove,
    replacing,
    sha256_file,
    to_json,
    write_json,
    write_text,
)

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""
POINTER, META = "last", "meta.json"
META_KEYS = {"step", "sha256", "values", "fingerprint"}
NAME = re.compile(r"step-[0-9]{8,18}")


@dataclass(frozen=True)
class Checkpoint:
    """A training run after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Plain JSON values that belong to the state."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, keep: int
) -> None:
    """Writes `step-N/`, points `last` at it, and deletes all but the newest `keep`.

    Older checkpoints go only after the new one was read back and its SHA-256 compared.
    """
    target = folder / f"step-{step:08d}"
    with replacing(target) as temporary:
        temporary.mkdir()
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(data, temporary / "state.safetensors")
        digest = sha256_file(temporary / "state.safetensors")
        meta = {"step": step, "sha256": digest, "values": values}
        write_json(temporary / META, {**meta, "fingerprint": fingerprint(meta)})
    _read(target)
    write_text(folder / POINTER, target.name + "\n")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old != target:
            remove(old)


def _last(folder: Path) -> str | None:
    """Names the checkpoint to go on from: the newest if there is no pointer, None if there is none.

    A kill can leave a first checkpoint without a pointer; to begin afresh beside it would lose it.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        names = (path.name for path in folder.glob("step-*"))
        return max(filter(NAME.fullmatch, names), default=None)
    # Written with a newline; by hand perhaps without one.
    name = re.sub(r"\r?\n\Z", "", pointer.read_bytes().decode(errors="replace"))
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} names {name!r}, which is no checkpoint of this folder.")
    return name


def mend_pointer(folder: Path) -> None:
    """Writes which checkpoint is the last if a failure has left it unsaid."""
    name = _last(folder)
    if name and not (folder / POINTER).exists():
        write_text(folder / POINTER, name + "\n")


def last_step(folder: Path) -> int:
    """Returns the step of the last checkpoint, or 0 if there is none yet."""
    return int((_last(folder) or "step-0").removeprefix("step-"))


def last_sha256(folder: Path) -> str | None:
    """Returns the recorded SHA-256 of the checkpoint that `last` names, without reading it."""
    name = _last(folder)
    return _meta(folder / name).get("sha256") if name else None


def last_values(folder: Path) -> dict[str, Any]:
    """Returns the values of the checkpoint that `last` names, without reading its tensors."""
    name = _last(folder)
    return dict(_meta(folder / name).get("values") or {}) if name else {}


def load_last(folder: Path) -> Checkpoint | None:
    """Returns the checkpoint that `last` names, or None if there is none yet.

    Raises CheckpointError if it is damaged.
    """
    name = _last(folder)
    return _read(folder / name) if name else None


def _meta(target: Path) -> dict[str, Any]:
    """Reads what a checkpoint says of itself. Raises CheckpointError if that was changed."""
    path = target / META
    meta = read_json(path, CheckpointError, "checkpoint")
    as_written = path.read_bytes() == to_json(meta) and meta.keys() <= META_KEYS
    seal = meta.pop("fingerprint", None)  # Of checkpoints of the first versions there is none.
    name = f"step-{str(meta.get('step')).zfill(8)}"
    if not as_written or seal not in (None, fingerprint(meta)) or name != target.name:
        raise CheckpointError(f"{path} is damaged: it is not what was written. {_older(target)}")
    return meta


def _older(target: Path) -> str:
    pointer = target.parent / POINTER
    return f"Write the name of an older checkpoint into {pointer}, or start afresh."


def _read(target: Path) -> Checkpoint:
    meta = _meta(target)
    state = target / "state.safetensors"
    if not state.exists() or sha256_file(state) != meta.get("sha256"):
        raise CheckpointError(
            f"{state} is damaged: its SHA-256 is not the one in {target / META}. {_older(target)}"
        )
    try:
        return Checkpoint(int(meta["step"]), load_file(state), dict(meta["values"]))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{target} is no checkpoint: {error}.") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flattens an optimizer's state: `optimizer.PARAMETER.KEY`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
