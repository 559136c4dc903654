"""What a store knows of each frame of its windows beside the tokens, such as a robot's states.

Each shard has a table of its own, `states/SPLIT-00000.parquet`: split, row, frame of the window,
and for each name a list of so many float32. `store.json` says names, widths and frames of a window.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.condition_files import StatesFile
from pipeline.errors import PipelineError, TokenStoreError
from pipeline.storage.places import Storage
from pipeline.storage.sealed import from_parquet, to_parquet
from pipeline.store.layout import INFO, MAX_SHARD_BYTES, REDO, StoreInfo, part_name

STATES, STATES_HASH = "states", "states_sha256"
"""The folder of their tables; what a store says of them below `extra`, and which they are."""
KEYS = pa.schema([("split", pa.string()), ("row", pa.int64()), ("frame", pa.int32())])
MAX_WIDTH = 1024
"""Numbers of one name and frame; a shard of them is held in memory."""
NAME = re.compile(r"[A-Za-z][\w.]{0,99}", re.ASCII)


@dataclass(frozen=True)
class States:
    """What a store says of its states."""

    frames: int
    """Frames of a window."""
    widths: Mapping[str, int]
    """Numbers of a frame, by name."""

    def __post_init__(self) -> None:
        sizes = (self.frames, *self.widths.values())
        named = all(NAME.fullmatch(name) and name not in KEYS.names for name in self.widths)
        if not named or not self.widths or not 1 <= min(sizes) <= max(sizes) < 1 << 24:
            raise TokenStoreError(
                f"states {dict(self.widths)} of {self.frames} frames are impossible: names are "
                f"letters, digits, _ and dots, other than {', '.join(KEYS.names)}."
            )
        if max(self.widths.values()) > MAX_WIDTH:
            raise TokenStoreError(f"states of more than {MAX_WIDTH:,} numbers are not kept.")

    def recorded(self) -> dict[str, Any]:
        """Returns what store.json says of them, below `extra`."""
        return {STATES: {"frames": self.frames, "widths": dict(self.widths)}}

    @classmethod
    def of(cls, info: StoreInfo) -> "States | None":
        """Returns those of a store, if it has any. Raises TokenStoreError if they cannot be."""
        said = info.extra.get(STATES)
        if said is None:
            return None
        if isinstance(said, dict) and said.keys() == {"frames", "widths"}:
            frames, widths = said["frames"], said["widths"]
            numbers = [frames, *widths.values()] if isinstance(widths, dict) else [None]
            if all(type(number) is int for number in numbers):
                return cls(frames, widths)
        raise TokenStoreError(f"{INFO} says states that are none: {str(said)[:200]}.")

    @property
    def window_bytes(self) -> int:
        """Bytes of the numbers of one window."""
        return 4 * self.frames * sum(self.widths.values())

    @property
    def schema(self) -> pa.Schema:
        """The columns of their tables."""
        return pa.schema([*KEYS, *((name, pa.list_(pa.float32())) for name in self.widths)])

    def table(
        self, info: StoreInfo, split: str, shard: int, values: Mapping[str, NDArray[np.float32]]
    ) -> pa.Table:
        """Makes the table of a shard; `values` are by name [n, frames, width]."""
        columns = list(_keys(info, split, shard, self.frames).columns)
        for name, width in self.widths.items():
            flat = pa.array(values[name].reshape(-1), pa.float32())
            offsets = np.arange(0, len(flat) + 1, width, dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, flat))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def values(self, table: pa.Table, name: str) -> NDArray[np.float32]:
        """Returns the numbers of one name in the table of a shard [n, frames, width]."""
        numbers: NDArray[np.float32] = pc.list_flatten(table[name]).to_numpy()
        return numbers.reshape(-1, self.frames, self.widths[name])


def states_of(info: StoreInfo, frames: int, file: StatesFile) -> States:
    """Returns what a store says of numbers of `frames` of a window that a file holds.

    Raises PipelineError, naming the file, for names that cannot be, and for shards too large.
    """
    try:
        states = States(frames, file.widths)
    except TokenStoreError as error:
        raise PipelineError(f"{file.place}: {error}") from None
    if info.shard_windows * states.window_bytes > MAX_SHARD_BYTES:
        raise PipelineError(
            f"{file.place}: the numbers of a shard of {info.shard_windows} windows take more than "
            f"{MAX_SHARD_BYTES:,} bytes; lower shard_windows, or give fewer."
        )
    return states


def empty_states(states: States, rows: int) -> dict[str, NDArray[np.float32]]:
    """Returns numbers of which none is known, by name [rows, frames, width]."""
    return {
        name: np.full((rows, states.frames, width), np.nan, np.float32)
        for name, width in states.widths.items()
    }


def hash_states(shards: Iterable[Mapping[str, NDArray[np.float32]]]) -> str:
    """Hashes the numbers of every shard, in order; those of a shard are by name."""
    digest = hashlib.sha256()
    for values in shards:
        for name in sorted(values):
            digest.update(values[name].astype("<f4").tobytes())
    return digest.hexdigest()


def states_name(split: str, shard: int) -> str:
    """Names the file with the states of a shard, below its store."""
    return f"{STATES}/{part_name(split, shard)}"


def write_states(files: Storage, split: str, shard: int, table: pa.Table) -> None:
    """Writes the states of a shard, with a hash of its own bytes."""
    files.write(states_name(split, shard), to_parquet(table))


def read_states(files: Storage, info: StoreInfo, split: str, shard: int) -> pa.Table | None:
    """Returns the states of a shard, row by row and frame by frame; None if the store has none.

    Raises TokenStoreError, naming the file, if it is not as it was written.
    """
    states = States.of(info)
    if states is None:
        return None
    path, (start, stop) = files.place(states_name(split, shard)), info.shard_rows(split, shard)
    try:
        data = files.read(states_name(split, shard))
        table = from_parquet(data, rows=(stop - start) * states.frames).cast(states.schema)
    except FileNotFoundError:
        raise TokenStoreError(f"{path} is missing; {REDO}.") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise TokenStoreError(f"{path} is damaged: {str(error).splitlines()[0]}; {REDO}.") from None
    lengths = {name: pc.unique(pc.list_value_length(table[name])) for name in states.widths}
    fits = all(lengths[name].to_pylist() == [width] for name, width in states.widths.items())
    keys = _keys(info, split, shard, states.frames)
    if not fits or not table.select(KEYS.names).equals(keys):
        raise TokenStoreError(f"{path} is not of the rows of its shard; {REDO}.")
    return table


def _keys(info: StoreInfo, split: str, shard: int, frames: int) -> pa.Table:
    """Returns split, row and frame of every frame of a shard, in order."""
    start, stop = info.shard_rows(split, shard)
    count = (stop - start) * frames
    columns = [
        pa.array([split]).take(pa.array(np.zeros(count, np.int64))),
        pa.array(np.arange(start, stop).repeat(frames)),
        pa.array(np.tile(np.arange(frames, dtype=np.int32), stop - start)),
    ]
    return pa.Table.from_arrays(columns, schema=KEYS)
