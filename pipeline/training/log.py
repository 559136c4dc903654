"""`metrics.jsonl`: a run's numbers, one JSON object a line, and TensorBoard if it is installed.

Every line has the same keys, null where nothing was measured: readers that learn the columns from
the first lines would drop those that come later.
Each checkpoint says which bytes the log began with, so that a damaged one is told from a whole one.
"""

import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import sync_file, write_bytes
from pipeline.training.checkpoint import CHECKPOINTS, last_values

FILE, LOG_CHECKSUM = "metrics.jsonl", "log"


class Log:
    """Writes the log of a run in `folder`; goes on behind what its last checkpoint vouches for.

    `keys` are those that each line has, whichever of them are given with it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_step: int,
        checksum: Mapping[str, Any] | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.path = folder / FILE
        self.keys = keys
        if checksum and not self.path.exists():
            said = f"{self.path} is missing: a new log begins at step {resumed_step}"
            print(said, file=sys.stderr, flush=True)
        if checksum:
            kept = verified_prefix(self.path, checksum)
        else:
            data = self.path.read_bytes() if self.path.exists() else b""
            lines = data.decode(errors="replace").splitlines(keepends=True)
            kept = "".join(line for line in lines if _step_of(line) <= resumed_step).encode()
        write_bytes(self.path, kept)
        self.board = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Appends one line; numbers that are not finite become null."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            line = {"step": step, **dict.fromkeys(self.keys), **plain}
            file.write(json.dumps(line) + "\n")
        if self.board:
            for key, value in plain.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(key, value, step)

    def checksum(self) -> dict[str, int]:
        """Returns what tells this log from any other, once its lines so far are on the disk."""
        sync_file(self.path)
        data = self.path.read_bytes()
        return {"bytes": len(data), "crc32": zlib.crc32(data)}


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # The last line of a killed run may be cut off.


def verified_prefix(path: Path, checksum: Any) -> bytes:
    """Returns the part of a log that a checkpoint vouches for; nothing if there is no log.

    Raises PipelineError if that part is not there as it was.
    """
    if not path.exists():
        return b""
    size = checksum.get("bytes") if isinstance(checksum, dict) else None
    begun = path.read_bytes()[:size] if isinstance(size, int) else b""
    if {"bytes": len(begun), "crc32": zlib.crc32(begun)} != checksum:
        raise PipelineError(
            f"{path} is damaged: its first {size} bytes are not those that the last checkpoint was "
            "saved with. Put back a copy, or delete it to go on without."
        )
    return begun


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads a log; a last line that a kill cut off is left out.

    Raises PipelineError if it is damaged, as far as a checkpoint beside it can tell.
    """
    checksum = last_values(path.parent / CHECKPOINTS).get(LOG_CHECKSUM)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if checksum:
            print(f"{path} is missing: its curves are left out", file=sys.stderr, flush=True)
        return []
    if checksum:
        verified_prefix(path, checksum)
    lines = data.decode(errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            if number < len(lines):
                raise PipelineError(f"{path}, line {number}: not a line of a log.") from None
    return found
