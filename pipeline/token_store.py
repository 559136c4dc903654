"""Token stores: create, write one shard, verify, read shards. Nothing half-written reads as whole.

A store is a folder, or a prefix of an S3 bucket: `store.json` says what it holds, `plan.parquet`
what each row is, `SPLIT.zarr` holds the tokens in shards, and `manifest/SPLIT-00000.parquet`
commits one finished shard.
"""

import contextlib
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.config import as_dict, build, fingerprint
from pipeline.errors import ConfigError, TokenStoreError
from pipeline.files import parse_json, to_json
from pipeline.storage import Place, Storage, open_storage
from pipeline.windows import PLAN_SCHEMA

SCHEMA = 1
INFO, PLAN, MANIFEST = "store.json", "plan.parquet", "manifest"
SMALL_CODEBOOK = 65_535
"""Below so many codes tokens are stored as uint16, whose largest value marks a missing token."""
LARGEST_WINDOW = 1 << 24
"""Tokens of one window beyond which a store.json is not believed."""
LARGEST_SHARD = 1 << 30
"""Bytes of the tokens of one shard, which is held in memory as a whole."""
MOST_SHARDS = 1 << 20
MOST_SHRUNK = 1 << 15
"""Times that zstd can shrink bytes: a block of 128 KiB, all the same, takes 4 bytes."""
HEADER_KEYS = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
"""What a zarr.json must say for other readers of the array to find the same tokens."""

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
    size: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the maker wants to say, such as how samples were drawn."""

    def __post_init__(self) -> None:
        sizes = (self.codebook_size, *self.grid, self.shard_windows, self.chunk_windows)
        if min(sizes) < 1 or self.codebook_size > 2**31 or math.prod(self.grid) > LARGEST_WINDOW:
            raise TokenStoreError(
                f"impossible sizes: codebook {self.codebook_size}, grid {self.grid}."
            )
        if math.prod((self.shard_windows, *self.grid, self.dtype.itemsize)) > LARGEST_SHARD:
            raise TokenStoreError(
                f"a shard of {self.shard_windows} windows with grid {self.grid} is larger than "
                f"{LARGEST_SHARD:,} bytes; lower shard_windows."
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
        if sum(map(self.num_shards, self.counts)) > MOST_SHARDS:
            raise TokenStoreError(
                f"{sum(self.counts.values()):,} windows make more than {MOST_SHARDS:,} shards of "
                f"{self.shard_windows}; raise shard_windows."
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens."""
        return np.dtype(np.uint16 if self.codebook_size < SMALL_CODEBOOK else np.uint32)

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


def _plan_hash(plan: pa.Table) -> str:
    """Hashes what the plan says, not the bytes of its file: those change with the library."""
    digest = hashlib.sha256()
    for column in plan.select(PLAN_SCHEMA.names).columns:
        if pa.types.is_string(column.type):
            digest.update("\0".join(column.to_pylist()).encode())
        else:
            digest.update(column.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


class TokenStore:
    """Reads a finished store; every shard is checked each time it is read.

    `TokenStore(path)` raises TokenStoreError, naming the place, if the store is damaged,
    unfinished, or of another version.
    """

    def __init__(self, root: Place | Storage, *, allow_partial: bool = False) -> None:
        self.files = open_storage(root)
        self.root: Place = self.files.root
        path = self.files.place(INFO)
        record = self._read_info()
        if record.get("schema") != SCHEMA:
            raise TokenStoreError(
                f"{path} has schema {record.get('schema')!r}, but this version reads "
                f"{SCHEMA}; make the tokens again with `mebt tokenize`."
            )
        try:
            self.info = build(StoreInfo, record.get("info", {}), where=str(path))
        except (ConfigError, AttributeError, TypeError) as error:
            raise TokenStoreError(str(error)) from None
        self.plan_hash = str(record.get("plan"))
        self.fingerprint = store_fingerprint(self.info, self.plan_hash)
        if record.get("fingerprint") != self.fingerprint:
            raise TokenStoreError(f"{path} was edited: its fingerprint does not match.")
        if not allow_partial:
            self._check_complete()

    def _read_info(self) -> dict[str, Any]:
        path = self.files.place(INFO)
        try:
            return parse_json(self.files.read(INFO), path, TokenStoreError, "token store")
        except FileNotFoundError:
            if self._part_names():
                raise TokenStoreError(f"{path} is missing; {_REDO}.") from None
            raise TokenStoreError(f"{path} is missing, so {self.root} is no token store.") from None
        except NotADirectoryError:
            raise TokenStoreError(f"{self.root} is a file, not a token store.") from None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of one window."""
        return self.info.grid

    @property
    def codebook_size(self) -> int:
        """Vectors K in the codebook; tokens are 0 … K - 1."""
        return self.info.codebook_size

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self.info.counts)

    def num_windows(self, split: str) -> int:
        """Counts the windows of a split."""
        return self.info.counts[split]

    def num_shards(self, split: str) -> int:
        """Counts the shards of a split."""
        return self.info.num_shards(split)

    def shard_rows(self, split: str, shard: int) -> tuple[int, int]:
        """Returns the first row of a shard and the one after its last."""
        return self.info.shard_rows(split, shard)

    def plan(self, split: str | None = None) -> pa.Table:
        """Returns what each row is, of a split or of all: see `PLAN_SCHEMA`."""
        table = self._plan
        return table if split is None else table.filter(np.asarray(table["split"]) == split)

    @cached_property
    def _plan(self) -> pa.Table:
        path = self.files.place(PLAN)
        try:
            data = self.files.read(PLAN)
        except FileNotFoundError:
            raise TokenStoreError(f"{path} is missing; {_REDO}.") from None
        try:
            table = _from_parquet(data, rows=sum(self.info.counts.values())).cast(PLAN_SCHEMA)
        except (pa.ArrowException, ValueError, OSError) as error:
            problem = str(error).splitlines()[0]
            raise TokenStoreError(f"{path} is damaged: {problem}; delete it.") from None
        if _plan_hash(table) != self.plan_hash:
            raise TokenStoreError(f"{path} is not the plan that {INFO} was written with.")
        return table

    def read_shard(self, split: str, shard: int) -> NDArray[np.unsignedinteger[Any]]:
        """Returns the tokens of one shard [n, t, h, w].

        Raises TokenStoreError, naming the file, if it is not what its manifest part says.
        """
        data, _ = self._read(split, shard)
        return self._decode(split, shard, data)

    def _read(self, split: str, shard: int) -> tuple[bytes, dict[str, Any]]:
        """Returns the bytes of a shard, and what commits it."""
        path, part = self.shard_file(split, shard), self.part(split, shard)
        start, stop = self.shard_rows(split, shard)
        try:
            data = self.files.read(_shard_name(split, shard))
        except FileNotFoundError:
            data = b""
        self._compare(path, part, bytes=len(data), crc32=zlib.crc32(data), rows=stop - start)
        return data, part

    def _decode(self, split: str, shard: int, data: bytes) -> NDArray[np.unsignedinteger[Any]]:
        path, (start, stop) = self.shard_file(split, shard), self.shard_rows(split, shard)
        claimed = math.prod((stop - start, *self.grid, self.info.dtype.itemsize))
        if claimed > MOST_SHRUNK * len(data):  # Before that much memory is asked for.
            raise TokenStoreError(
                f"{path} cannot be decoded: {len(data):,} bytes never hold {stop - start} windows "
                f"of {self.grid} tokens; {_REDO}."
            )
        try:
            tokens = _decode(self.info, split, shard, data)
        except (ValueError, RuntimeError, KeyError) as error:
            raise TokenStoreError(f"{path} cannot be decoded: {error}; {_REDO}.") from None
        if len(tokens) != stop - start or int(tokens.max()) >= self.codebook_size:
            raise TokenStoreError(
                f"{path} holds token {int(tokens.max())}, but the codebook has "
                f"{self.codebook_size}; {_REDO}."
            )
        return tokens

    def read(self, split: str, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Returns the tokens of these rows as int64 [n, t, h, w]."""
        count = self.num_windows(split)
        start, stop, _ = slice(start, stop).indices(count)
        tokens = np.empty((max(0, stop - start), *self.grid), dtype=np.int64)
        size = self.info.shard_windows
        for shard in range(start // size, -(-stop // size) if stop > start else 0):
            first, last = self.shard_rows(split, shard)
            low, high = max(first, start), min(last, stop)
            tokens[low - start : high - start] = self.read_shard(split, shard)[
                low - first : high - first
            ]
        return tokens

    def verify(self) -> list[str]:
        """Re-hashes every file of the store; returns what is wrong, a line each."""
        wrong: list[str] = []
        for split in self.splits:
            header = json.loads(_header(self.info, split))
            try:
                path = self.files.place(_header_name(split))
                data = self.files.read(_header_name(split))
                found = parse_json(data, path, TokenStoreError, "zarr array")
            except FileNotFoundError:
                found = {}
            except TokenStoreError as error:
                wrong.append(str(error))
                continue
            if any(found.get(key) != header[key] for key in HEADER_KEYS):
                wrong.append(f"{path} does not describe this store's array; {_REDO}.")
        try:
            plan = self._plan
        except TokenStoreError as error:
            wrong.append(str(error))
        else:
            if not self.fits(plan):
                wrong.append(f"{self.files.place(PLAN)} does not list the rows that {INFO} counts.")
        for split, shard in self.info.shards():
            try:
                self.check_shard(split, shard)
            except TokenStoreError as error:
                wrong.append(str(error))
        wrong += [
            f"{self.files.place(MANIFEST, name)} commits no shard of this store; delete it."
            for name in sorted(self.strangers())
        ]
        return wrong

    def check_shard(self, split: str, shard: int) -> None:
        """Reads and re-hashes one shard. Raises TokenStoreError, naming what is wrong."""
        data, part = self._read(split, shard)
        digest = hashlib.sha256(data).hexdigest()
        self._compare(self.shard_file(split, shard), part, sha256=digest)
        self._decode(split, shard, data)

    def fits(self, plan: pa.Table) -> bool:
        """Says whether a plan has the rows of every split, each in its shard."""
        for split, count in self.info.counts.items():
            rows = plan.filter(np.asarray(plan["split"]) == split)
            numbers = np.arange(count)
            if not np.array_equal(rows["row"].to_numpy(), numbers) or not np.array_equal(
                rows["shard"].to_numpy(), numbers // self.info.shard_windows
            ):
                return False
        return len(plan) == sum(self.info.counts.values())

    def strangers(self) -> set[str]:
        """Names manifest parts that commit no shard of the plan."""
        return self._part_names() - {_part_name(*shard) for shard in self.info.shards()}

    def missing(self) -> list[tuple[str, int]]:
        """Lists the shards that no manifest part commits."""
        parts = self._part_names()
        return [(s, n) for s, n in self.info.shards() if _part_name(s, n) not in parts]

    def _part_names(self) -> set[str]:
        return set(self.files.names(MANIFEST))

    def _check_complete(self) -> None:
        if PLAN not in self.files.names():
            raise TokenStoreError(f"{self.files.place(PLAN)} is missing; {_REDO}.")
        parts = self._part_names()
        total = sum(self.info.num_shards(split) for split in self.splits)
        for split, shard in self.info.shards():
            if _part_name(split, shard) not in parts:
                raise TokenStoreError(
                    f"{self.root} is unfinished: shard {shard} of {split} is missing, "
                    f"{len(parts)} of {total} are there; {_REDO}."
                )

    def shard_file(self, split: str, shard: int) -> Place:
        """Returns where a shard lies. Raises TokenStoreError if that leads out of the store."""
        return self.files.place(_shard_name(split, shard))

    def part(self, split: str, shard: int) -> dict[str, Any]:
        """Returns what commits a shard: see `PART_SCHEMA`."""
        part = _read_part(self.files, _part_name(split, shard))
        path = self.files.place(MANIFEST, _part_name(split, shard))
        self._compare(path, part, split=split, shard=shard, fingerprint=self.fingerprint)
        return part

    def _compare(self, path: Place, part: Mapping[str, Any], **found: Any) -> None:
        for key, value in found.items():
            if part[key] != value:
                state = "is missing or empty" if (key, value) == ("bytes", 0) else "is damaged"
                raise TokenStoreError(
                    f"{path} {state}: {key} is {value}, its manifest says {part[key]}; {_REDO}."
                )


_REDO = "run the command that made the store again, it redoes what is missing or damaged"


def store_fingerprint(info: StoreInfo, plan_hash: str) -> str:
    """Hashes everything that fixes the store's content, except the tokens themselves."""
    return fingerprint({"schema": SCHEMA, "info": as_dict(info), "plan": plan_hash})


def _shard_name(split: str, shard: int) -> str:
    return f"{split}.zarr/c/{shard}/0/0/0"


def _read_part(files: Storage, name: str) -> dict[str, Any]:
    """Reads what commits a shard. Raises TokenStoreError, naming the file, if it is damaged."""
    path = files.place(MANIFEST, name)
    try:
        data = files.read(f"{MANIFEST}/{name}")
    except FileNotFoundError:
        raise TokenStoreError(f"{path} is missing; {_REDO}.") from None
    try:
        (part,) = _from_parquet(data, rows=1).cast(PART_SCHEMA).to_pylist()
    except (pa.ArrowException, ValueError, OSError):
        raise TokenStoreError(f"{path} is damaged; {_REDO}.") from None
    return dict(part)


def _header_name(split: str) -> str:
    return f"{split}.zarr/zarr.json"


def _part_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.parquet"


def _in_memory(info: StoreInfo, split: str) -> tuple[dict[str, Buffer], "zarr.Array[Any]"]:
    """Makes an empty array of a split's layout, in memory.

    Shards are encoded and decoded there. So what is checked is what is read, what is written is
    synced by us, and codecs that somebody else's zarr.json asks for are never run.
    """
    files: dict[str, Buffer] = {}
    array = zarr.create_array(
        MemoryStore(files),
        shape=(info.counts[split], *info.grid),
        chunks=(info.chunk_windows, *info.grid),
        shards=(info.shard_windows, *info.grid),
        dtype=info.dtype,
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=int(np.iinfo(info.dtype).max),
    )
    return files, array


def _encode(info: StoreInfo, split: str, shard: int, tokens: NDArray[Any]) -> bytes:
    files, array = _in_memory(info, split)
    array[slice(*info.shard_rows(split, shard))] = tokens.astype(info.dtype)
    return files[f"c/{shard}/0/0/0"].to_bytes()


def _decode(
    info: StoreInfo, split: str, shard: int, data: bytes
) -> NDArray[np.unsignedinteger[Any]]:
    files, array = _in_memory(info, split)
    files[f"c/{shard}/0/0/0"] = default_buffer_prototype().buffer.from_bytes(data)
    return np.asarray(array[slice(*info.shard_rows(split, shard))])


def _header(info: StoreInfo, split: str) -> bytes:
    return _in_memory(info, split)[0]["zarr.json"].to_bytes()


def read_rows(store: TokenStore, split: str, rows: Sequence[int]) -> NDArray[np.int64]:
    """Returns windows as int64 [n, t, h, w], in the order of `rows`; reads each shard once."""
    wanted = np.asarray(rows, dtype=np.int64)
    tokens = np.empty((len(rows), *store.grid), dtype=np.int64)
    for shard in range(store.num_shards(split)):
        start, stop = store.shard_rows(split, shard)
        inside = (wanted >= start) & (wanted < stop)
        if inside.any():
            tokens[inside] = store.read_shard(split, shard)[wanted[inside] - start]
    return tokens


class StoreWriter:
    """Fills a store shard by shard. A shard is there as a whole, or not at all."""

    def __init__(self, root: Place | Storage) -> None:
        self.store = TokenStore(root, allow_partial=True)
        self.info, self.files = self.store.info, self.store.files

    def write_shard(self, split: str, shard: int, tokens: NDArray[Any]) -> None:
        """Writes the tokens [n, t, h, w] of a whole shard, then commits it in the manifest."""
        start, stop = self.info.shard_rows(split, shard)
        if tokens.shape != (stop - start, *self.info.grid):
            raise ValueError(f"shard {shard} of {split} cannot hold tokens of {tokens.shape}.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.info.codebook_size:
            raise ValueError(
                f"tokens {tokens.min()} … {tokens.max()} do not fit a codebook of "
                f"{self.info.codebook_size}."
            )
        data = _encode(self.info, split, shard, tokens)
        self.files.write(_shard_name(split, shard), data)
        part = {
            "split": split,
            "shard": shard,
            "rows": stop - start,
            "bytes": len(data),
            "crc32": zlib.crc32(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "fingerprint": self.store.fingerprint,
        }
        table = pa.Table.from_pylist([part], schema=PART_SCHEMA)
        self.files.write(f"{MANIFEST}/{_part_name(split, shard)}", _to_parquet(table))

    def unfinished(self) -> list[tuple[str, int]]:
        """Lists the shards that are missing or damaged; what commits damaged ones is withdrawn."""
        for name in self.store.strangers():
            self.files.remove(f"{MANIFEST}/{name}")
        for split, shard in set(self.info.shards()) - set(self.store.missing()):
            try:
                self.store.check_shard(split, shard)
            except TokenStoreError:
                self.files.remove(f"{MANIFEST}/{_part_name(split, shard)}")
        return self.store.missing()


def create_store(
    root: Place | Storage, info: StoreInfo, plan: pa.Table, *, overwrite: bool = False
) -> StoreWriter:
    """Makes an empty store, or opens the unfinished or finished one of the same content.

    That one may have lost its store.json: what commits its shards tells that they are of it. Call
    it under the lock of its storage. Raises TokenStoreError, naming the first difference, if `root`
    holds another store, unless `overwrite` allows to delete it, or something else.
    """
    files = open_storage(root)
    plan_hash = _plan_hash(plan)
    wanted = store_fingerprint(info, plan_hash)
    others = files.names()
    if others and INFO not in others:
        if _committed_fingerprints(files) != {wanted}:
            raise TokenStoreError(
                f"{files.root} holds {others[0]} but no {INFO} that says what it is; delete it "
                "yourself, or choose another --out."
            )
    elif others and _found_fingerprint(files) != wanted:
        if not overwrite:
            raise TokenStoreError(
                f"{files.root} was made with {_difference(files, info)}; choose another --out, or "
                "give --overwrite."
            )
        # The manifest goes first and store.json last, so that a kill leaves nothing trusted.
        for name in sorted(others, key=lambda name: (name != MANIFEST, name == INFO)):
            files.remove(name)
    record = {"schema": SCHEMA, "fingerprint": wanted, "plan": plan_hash, "info": as_dict(info)}
    files.write(INFO, to_json(record))
    files.write(PLAN, _to_parquet(plan))
    for split in info.counts:
        files.write(_header_name(split), _header(info, split))
    return StoreWriter(files)


def _found_fingerprint(files: Storage) -> str | None:
    try:
        return TokenStore(files, allow_partial=True).fingerprint
    except TokenStoreError:
        return None


def _committed_fingerprints(files: Storage) -> set[str]:
    """Says which stores the shards are of; what is damaged says nothing."""
    found = set()
    for name in files.names(MANIFEST):
        with contextlib.suppress(TokenStoreError):
            found.add(_read_part(files, name)["fingerprint"])
    return found


def _difference(files: Storage, info: StoreInfo) -> str:
    try:
        found = as_dict(TokenStore(files, allow_partial=True).info)
    except TokenStoreError as error:
        return f"another version or by something else ({error})"
    wanted = as_dict(info)
    wanted["counts"] = wanted.pop("counts")  # Last: another value is what made them differ.
    for key, value in wanted.items():
        if found[key] != value:
            return f"{key} = {found[key]!r}, not {value!r}"
    return "another plan of windows (videos, hop or seed)"


def _to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _from_parquet(data: bytes, *, rows: int) -> pa.Table:
    """Reads a table. Raises ValueError, before that takes memory, if its rows are more or fewer."""
    found = pq.ParquetFile(pa.BufferReader(data))
    if found.metadata.num_rows != rows:
        raise ValueError(f"it has {found.metadata.num_rows:,} rows, not {rows:,}")
    return found.read()
