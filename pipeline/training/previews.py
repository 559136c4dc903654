"""What a model in training draws of the same seeds, kept from step to step."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.storage.files import write_bytes
from pipeline.storage.sealed import from_parquet, to_parquet

FOLDER, FILE = "previews", "tokens.parquet"
SCHEMA = pa.schema(
    [("step", pa.int64()), ("shape", pa.list_(pa.int64())), ("tokens", pa.list_(pa.int32()))]
)
"""One row a step."""

Tokens = Int[np.ndarray, "B t h w"]


def is_due(step: int, *, every: int, first: int, last: int) -> bool:
    """Says whether a run is drawn from at a step: at the `first`, the `last` and every so many."""
    return bool(every) and (step in (first, last) or step % every == 0)


@dataclass
class Previews:
    """Has a model in training drawn from at some of its steps, and keeps what was drawn.

    At the `first` and the `last` step of the run and `every` so many in between; 0: never. They lie
    in one file of the run's folder, and with `show` each in a picture beside it.
    """

    run: Path
    every: int
    first: int
    last: int
    draw: Callable[[Mapping[str, Tensor]], Tokens]
    """Weights by name -> tokens, always of the same seeds."""
    show: Callable[[Path, Tokens], None] | None = None
    """(path, tokens) -> writes a picture."""
    kept: dict[int, Tokens] = field(default_factory=dict)
    """What was drawn before, by step."""
    seconds: float = 0.0
    """Time that it took in this call."""

    def due(self, step: int) -> bool:
        """Says whether the model of this step is to be drawn from."""
        return is_due(step, every=self.every, first=self.first, last=self.last)

    def add(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Draws with the weights of a step, unless that was done before the run went on."""
        if step in self.kept:
            return
        began = time.perf_counter()
        self.kept[step] = self.draw(weights)
        write_previews(self.run, self.kept)
        if self.show:
            self.show(self.run / FOLDER / f"step-{step:08d}.webp", self.kept[step])
        self.seconds += time.perf_counter() - began


def write_previews(run: Path, previews: Mapping[int, Tokens]) -> None:
    """Writes what was drawn at each step, as a whole."""
    rows = [
        {"step": step, "shape": list(tokens.shape), "tokens": tokens.ravel()}
        for step, tokens in sorted(previews.items())
    ]
    write_bytes(run / FOLDER / FILE, to_parquet(pa.Table.from_pylist(rows, SCHEMA)))


def read_previews(run: Path, *, up_to: float = math.inf) -> dict[int, Tokens]:
    """Returns what was drawn at each step, in order; nothing if the run keeps no previews.

    Raises CheckpointError if the file is damaged.
    """
    path = run / FOLDER / FILE
    try:
        table = from_parquet(path.read_bytes(), rows=None)
        steps, shapes, tokens = (table[name].to_numpy() for name in SCHEMA.names)
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, ValueError, OSError, KeyError):
        raise CheckpointError(
            f"{path} is damaged: its bytes are not those that were written. Delete it to go on "
            "without what it showed."
        ) from None
    rows = zip(steps, shapes, tokens, strict=True)
    return {
        int(step): x.reshape(shape).astype(np.int64) for step, shape, x in rows if step <= up_to
    }
