"""What a token store looks like: its files, their names, and how tokens lie in them.

A store is a folder, or a prefix of an S3 bucket: `store.json` says what it holds, `plan.parquet`
what each row is, `frames.parquet` which frames they were made from, `SPLIT.zarr` holds the tokens
in shards, and `manifest/SPLIT-00000.parquet` commits one finished shard.

Every file but `store.json`, whose fingerprint says the same, holds a SHA-256 of its own bytes.
Those of the first versions hold none; they are told from damaged ones and still read.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import as_dict, fingerprint
from pipeline.errors import TokenStoreError
from pipeline.storage.places import Storage
from pipeline.storage.sealed import from_parquet, to_parquet

SCHEMA = 1
INFO, PLAN, MANIFEST = "store.json", "plan.parquet", "manifest"
SMALL_CODEBOOK = 65_535
"""Below so many codes tokens are stored as uint16, whose largest value marks a missing token."""
MAX_WINDOW_TOKENS = 1 << 24
"""Tokens of one window beyond which a store.json is not believed."""
MAX_SHARD_BYTES = 1 << 30
"""Bytes of the tokens of one shard, which is held in memory as a whole."""
MAX_SHARDS = 1 << 20

REDO = "run the command that made the store again, it redoes what is missing or damaged"
"""How to mend a store."""

PLAN_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("video", pa.string()),
        ("first_frame", pa.int32()),
    ]
)
LABEL, CAPTION = TEXTS = ("label", "caption")
"""Columns behind those, each of a plan that has it for any of its windows; null: not known."""
PART_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("crc32", pa.uint32()),
        ("sha256", pa.string()),
        ("fingerprint", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What the tokens of a store are, and how they lie on the disk."""

    tokenizer: str | None
    """Identity of the tokenizer that made them; null: imported from elsewhere."""
    codebook_size: int
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of one window, in tokens."""
    source: str
    """Fingerprint of the frames, or what else the tokens were made from."""
    counts: dict[str, int]
    """Windows of each split."""
    shard_windows: int = 4096
    chunk_windows: int = 64
    frames: int | None = None
    stride: int | None = None
    hop: int | None = None
    size: int | tuple[int, int] | None = None
    """Pixels of its frames: the side of a square, or height and width."""
    fps: float | None = None
    """Frames per second of a window's frames; null: not known. Tokens do not depend on it, so
    stores that differ in nothing else are the same store: it has a seal of its own."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the maker wants to say, such as how samples were drawn."""

    def __post_init__(self) -> None:
        sizes = (self.codebook_size, *self.grid, self.shard_windows, self.chunk_windows)
        if min(sizes) < 1 or self.codebook_size > 2**31 or math.prod(self.grid) > MAX_WINDOW_TOKENS:
            raise TokenStoreError(
                f"impossible sizes: codebook {self.codebook_size}, grid {self.grid}."
            )
        if math.prod((self.shard_windows, *self.grid, self.dtype.itemsize)) > MAX_SHARD_BYTES:
            raise TokenStoreError(
                f"a shard of {self.shard_windows} windows with grid {self.grid} is larger than "
                f"{MAX_SHARD_BYTES:,} bytes; lower shard_windows."
            )
        if self.shard_windows % self.chunk_windows:
            raise TokenStoreError(
                f"shard_windows {self.shard_windows} is no multiple of chunk_windows "
                f"{self.chunk_windows}."
            )
        for split, count in self.counts.items():
            if not (split.isascii() and split.isalpha()) or count < 1:
                raise TokenStoreError(f"split {split!r} of {count} windows is impossible.")
        if not self.counts:
            raise TokenStoreError("there is no split.")
        if sum(map(self.num_shards, self.counts)) > MAX_SHARDS:
            raise TokenStoreError(
                f"{sum(self.counts.values()):,} windows make more than {MAX_SHARDS:,} shards of "
                f"{self.shard_windows}; raise shard_windows."
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens."""
        return np.dtype(np.uint16 if self.codebook_size < SMALL_CODEBOOK else np.uint32)

    @property
    def as_stored(self) -> bool:
        """Whether frames were read without their EXIF orientation."""
        return bool(self.extra.get("as_stored"))

    @property
    def causal(self) -> bool:
        """Whether the first latent frame of a window is of one frame, by a causal tokenizer."""
        return bool(self.extra.get("causal"))

    @property
    def half(self) -> bool:
        """Whether the tokenizer computed in bfloat16."""
        return self.extra.get("precision") == "bf16-mixed"

    def num_shards(self, split: str) -> int:
        """Counts the shards of a split."""
        return -(-self.counts[split] // self.shard_windows)

    def shard_rows(self, split: str, shard: int) -> tuple[int, int]:
        """Returns the first row of a shard and the one after its last."""
        start = shard * self.shard_windows
        return start, min(start + self.shard_windows, self.counts[split])

    def shards(self) -> Iterator[tuple[str, int]]:
        """Yields every (split, shard)."""
        for split in self.counts:
            for shard in range(self.num_shards(split)):
                yield split, shard


def numbered_plan(counts: Mapping[str, int], name: str, shard_windows: int) -> pa.Table:
    """Makes the plan of windows that come from no known video: each is one of its own."""
    parts = []
    for split, count in counts.items():
        rows = np.arange(count)
        columns = (
            pa.array([split]).take(pa.array(np.zeros(count, np.int64))),
            pa.array((rows // shard_windows).astype(np.int32)),
            pa.array(rows),
            pa.array([f"{name}-{row:05d}" for row in rows], pa.string()),
            pa.array(np.zeros(count, np.int32)),
        )
        parts.append(pa.Table.from_arrays(list(columns), schema=PLAN_SCHEMA))
    return pa.concat_tables(parts)


def hash_plan(plan: pa.Table) -> str:
    """Hashes what the plan says, not the bytes of its file: those change with the library."""
    digest = hashlib.sha256()
    for column in plan.select(PLAN_SCHEMA.names).columns:
        if pa.types.is_string(column.type):
            digest.update("\0".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype("<i8").tobytes())
    if LABEL in plan.column_names:
        digest.update(json.dumps(plan[LABEL].to_pylist()).encode())
    if CAPTION in plan.column_names:
        digest.update(json.dumps({CAPTION: plan[CAPTION].to_pylist()}).encode())
    return digest.hexdigest()


def store_fingerprint(info: StoreInfo, plan_hash: str) -> str:
    """Hashes everything that fixes the store's content, except the tokens themselves."""
    content = {key: value for key, value in as_dict(info).items() if key != "fps"}
    return fingerprint({"schema": SCHEMA, "info": content, "plan": plan_hash})


def store_record(info: StoreInfo, plan_hash: str) -> dict[str, Any]:
    """Returns what store.json says; of a rate only if it is known, as before there were any."""
    store, content = store_fingerprint(info, plan_hash), as_dict(info)
    record = {"schema": SCHEMA, "fingerprint": store, "plan": plan_hash, "info": content}
    if content["fps"] is None:
        del content["fps"]
        return record
    return {**record, "seal": rate_seal(info, store)}


def rate_seal(info: StoreInfo, store: str) -> str | None:
    """Returns what store.json seals the rate with, which the store's fingerprint leaves out."""
    return None if info.fps is None else fingerprint({"store": store, "fps": info.fps})


def shard_name(split: str, shard: int) -> str:
    """Names the file of a shard, below its store."""
    return f"{split}.zarr/c/{shard}/0/0/0"


def read_part(files: Storage, name: str) -> dict[str, Any]:
    """Reads what commits a shard. Raises TokenStoreError, naming the file, if it is damaged."""
    path = files.place(MANIFEST, name)
    try:
        data = files.read(f"{MANIFEST}/{name}")
    except FileNotFoundError:
        raise TokenStoreError(f"{path} is missing; {REDO}.") from None
    try:
        (part,) = from_parquet(data, rows=1).cast(PART_SCHEMA).to_pylist()
    except (pa.ArrowException, ValueError, OSError):
        raise TokenStoreError(f"{path} is damaged; {REDO}.") from None
    return dict(part)


def write_part(files: Storage, part: Mapping[str, Any]) -> None:
    """Commits a shard: see `PART_SCHEMA`."""
    table = pa.Table.from_pylist([dict(part)], schema=PART_SCHEMA)
    files.write(f"{MANIFEST}/{part_name(part['split'], part['shard'])}", to_parquet(table))


def header_name(split: str) -> str:
    """Names the file that describes the array of a split, below its store."""
    return f"{split}.zarr/zarr.json"


def part_name(split: str, shard: int) -> str:
    """Names the manifest part that commits a shard."""
    return f"{split}-{shard:05d}.parquet"
