"""The log as tables, which `dvc plots` and editors draw; JSON lines they cannot read."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import write_text

TRAINING, VALIDATION = "training.csv", "validation.csv"
STEP = "step"


class Plots:
    """Keeps `training.csv` and `validation.csv` in `folder`: the lines of a log, by split.

    Both are written anew of `lines`, so that they tell what the log does after a stop; from then
    on each line is added to one of them. Null is an empty field. Raises PipelineError if a file of
    such a name is none of these tables.
    """

    def __init__(
        self, folder: Path, keys: Sequence[str], lines: Sequence[Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        known = dict.fromkeys((STEP, *keys, *(key for line in lines for key in line)))
        self.columns = [key for key in known if key != "split"]
        for path in (folder / TRAINING, folder / VALIDATION):
            if path.exists() and not path.read_bytes().startswith(f"{STEP},".encode()):
                raise PipelineError(f"{path} is no table of a log; choose another --plots.")
            mine = [line for line in lines if _file(line) == path.name]
            write_text(path, self._rows(mine, header=True))

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the table of its split."""
        with (self.folder / _file(line)).open("a", encoding="utf-8", newline="") as file:
            file.write(self._rows([line]))

    def _rows(self, lines: Sequence[Mapping[str, Any]], *, header: bool = False) -> str:
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        if header:
            table.writeheader()
        table.writerows(lines)
        return text.getvalue()


def _file(line: Mapping[str, Any]) -> str:
    return VALIDATION if line.get("split") == "validation" else TRAINING
