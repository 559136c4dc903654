"""`metrics.jsonl`: a run's numbers, one JSON object a line; tables and loggers get copies of it.

Every line has the same keys, null where nothing was measured: readers that learn the columns from
the first lines would drop those that come later.
Each checkpoint says which bytes the log began with, so that a damaged one is told from a whole one.
"""

import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import sync_file, write_bytes
from pipeline.training.checkpoint import CHECKPOINTS, last_values
from pipeline.training.loggers import open_copies
from pipeline.training.plots import Plots

FILE, LOG_CHECKSUM = "metrics.jsonl", "log"


@dataclass(frozen=True)
class Besides:
    """Where a log goes besides its file."""

    plots: Path | None = None
    """Folder for tables of it: see `Plots`."""
    loggers: Sequence[str] = ()
    """Programs that get each line, too: see `LOGGERS`."""


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
        besides: Besides | None = None,
    ) -> None:
        self.path = folder / FILE
        self.keys = keys
        if checksum and not self.path.exists():
            said = f"{self.path} is missing: a new log begins at step {resumed_step}"
            print(said, file=sys.stderr, flush=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        if checksum:
            kept = verified_prefix(self.path, checksum)
        else:
            begun = data.decode(errors="replace").splitlines(keepends=True)
            kept = "".join(line for line in begun if _step_of(line) <= resumed_step).encode()
        write_bytes(self.path, kept)
        lines = _parsed(kept)
        besides = besides or Besides()
        self.plots = Plots(besides.plots, keys, lines) if besides.plots else None
        self.copies = open_copies(
            besides.loggers, folder, kept=lines, before=_parsed(data), step=resumed_step
        )

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Appends one line; numbers that are not finite become null."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = {"step": step, **dict.fromkeys(self.keys), **plain}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for copy in (self.plots, *self.copies):
            if copy:
                copy.write(line)

    def close(self) -> None:
        """Lets the loggers write what they still hold."""
        for copy in self.copies:
            copy.close()

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


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """Returns the lines of a log that say their step."""
    lines = data.decode(errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


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
