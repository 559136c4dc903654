"""Reads a network that its authors publish in parts, such as an encoder and a decoder."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.published.torchscript import read_script
from pipeline.storage.files import sha256_file


@dataclass(frozen=True)
class Parts:
    """The tensors of all parts together."""

    where: str
    """The files, as messages name them."""
    sha256: str
    """Of the file; of several, of their hashes in the order of names."""
    state: dict[str, Tensor]
    used: frozenset[str]
    """Names of those that programs in the files read: see `read_script`."""


def read_parts(paths: Sequence[Path]) -> Parts:
    """Reads state dicts and TorchScript files, without running anything in them.

    Raises CheckpointError, in one line, if one cannot be read, or two hold other values of one
    name.
    """
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    owner: dict[str, Path] = {}
    for path in paths:
        script = read_script(path)
        for name, tensor in script.tensors.items():
            if name in state and not torch.equal(state[name], tensor):
                raise CheckpointError(
                    f"{path} and {owner[name]} hold other values of {name!r}; they are no parts "
                    "of one network."
                )
            owner[name] = path
        state |= script.tensors
        used |= script.used
    hashes = sorted(sha256_file(path) for path in paths)
    together = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Parts(
        where=" and ".join(map(str, paths)),
        sha256=hashes[0] if len(hashes) == 1 else together,
        state=state,
        used=frozenset(used),
    )
