"""Reads token stores, checking every shard: nothing half-written reads as whole.

`pipeline.store.layout` says what they look like.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import build
from pipeline.errors import ConfigError, TokenStoreError
from pipeline.metrics import token_counts
from pipeline.storage.files import parse_json, to_json
from pipeline.storage.places import Place, Storage, open_storage
from pipeline.store.layout import (
    INFO,
    LABEL,
    MANIFEST,
    PLAN,
    REDO,
    SCHEMA,
    StoreInfo,
    header_name,
    part_name,
    rate_seal,
    read_part,
    shard_name,
    store_fingerprint,
)
from pipeline.store.shards import (
    Tokens,
    chunks_of,
    decode_shard,
    is_header,
    read_places,
)
from pipeline.store.states import STATES, STATES_HASH, States, hash_states, read_states
from pipeline.store.tables import different_texts, read_plan, read_source

RECORD_KEYS = {"schema", "fingerprint", "plan", "info", "seal", "frames"}
"""What a store.json may hold; the last if its tokens were made from frames."""
WHOLE = 4
"""A shard is read whole if more than one in so many of its chunks are asked for."""


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
        sealed = (self.fingerprint, rate_seal(self.info, self.fingerprint))
        if (record.get("fingerprint"), record.get("seal")) != sealed:
            raise TokenStoreError(f"{path} was edited: its fingerprint does not match.")
        self.num_frames: int | None = record.get("frames")
        """Frames that its tokens were made from, if it lists them."""
        unknown = record.keys() - RECORD_KEYS
        if unknown or not isinstance(self.num_frames, int | None):
            what = min(unknown) if unknown else f"frames: {self.num_frames!r}"
            raise TokenStoreError(f"{path} was edited: it holds {what}; {REDO}.")
        if not allow_partial:
            self._check_complete()

    def _read_info(self) -> dict[str, Any]:
        path = self.files.place(INFO)
        try:
            return parse_json(self.files.read(INFO), path, TokenStoreError, "token store")
        except FileNotFoundError:
            if self._part_names():
                raise TokenStoreError(f"{path} is missing; {REDO}.") from None
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
        """Returns what each row is, of a split or of all: see `PLAN_SCHEMA`, `TEXTS`."""
        table = self._plan
        return table if split is None else table.filter(np.asarray(table["split"]) == split)

    @cached_property
    def _plan(self) -> pa.Table:
        return read_plan(self.files, self.info, self.plan_hash)

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the labels of windows, of all splits, in order; none if it has no labels."""
        return different_texts(self._plan, LABEL)

    @cached_property
    def made_from(self) -> pa.Table | None:
        """Which frames the tokens were made from: see `SOURCE_SCHEMA`.

        None for tokens that were made from none, and for stores of the first versions.
        """
        return read_source(self.files, self.info, self.num_frames)

    def token_counts(self, split: str) -> NDArray[np.int64]:
        """Counts how often each token occurs in a split, one shard after the other."""
        counts = np.zeros(self.codebook_size, dtype=np.int64)
        for shard in range(self.num_shards(split)):
            counts += token_counts(self.read_shard(split, shard), self.codebook_size)
        return counts

    def read_shard(self, split: str, shard: int) -> Tokens:
        """Returns the tokens of one shard [n, t, h, w].

        Raises TokenStoreError, naming the file, if it is not what its manifest part says.
        """
        data, _ = self._read(split, shard)
        return self._tokens(split, shard, data)

    def read_windows(self, split: str, shard: int, places: NDArray[np.int64]) -> Tokens:
        """Returns windows of one shard, numbered from 0 in it, in this order [n, t, h, w].

        Of few, only the inner chunks that hold them are read, and checked by checksums of their
        own: not by the shard's, for which all of it would have to be read.
        """
        asked = len(chunks_of(self.info, places)) * self.info.chunk_windows
        if WHOLE * asked > self.info.shard_windows:
            return self.read_shard(split, shard)[places]
        path, size = self.shard_file(split, shard), self.part(split, shard)["bytes"]
        return self._decode(path, lambda: read_places(self.info, path, size, places))

    def _read(self, split: str, shard: int) -> tuple[bytes, dict[str, Any]]:
        """Returns the bytes of a shard, and what commits it."""
        path, part = self.shard_file(split, shard), self.part(split, shard)
        start, stop = self.shard_rows(split, shard)
        try:
            data = self.files.read(shard_name(split, shard))
        except FileNotFoundError:
            data = b""
        self._compare(path, part, bytes=len(data), crc32=zlib.crc32(data), rows=stop - start)
        return data, part

    def _tokens(self, split: str, shard: int, data: bytes) -> Tokens:
        """Returns the tokens of a shard's bytes."""
        path = self.shard_file(split, shard)
        return self._decode(path, lambda: decode_shard(self.info, split, shard, data))

    def _decode(self, path: Place, decode: Callable[[], Tokens]) -> Tokens:
        """Returns what `decode` does, if all of it are tokens. Else raises TokenStoreError."""
        try:
            tokens = decode()
        except FileNotFoundError:
            raise TokenStoreError(f"{path} is missing or empty; {REDO}.") from None
        except (ValueError, RuntimeError) as error:
            raise TokenStoreError(f"{path} cannot be decoded: {error}; {REDO}.") from None
        if int(tokens.max()) >= self.codebook_size:
            raise TokenStoreError(
                f"{path} holds token {int(tokens.max())}, but the codebook has "
                f"{self.codebook_size}; {REDO}."
            )
        return tokens

    def read(self, split: str, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Returns the tokens of these rows as int64 [n, t, h, w]."""
        return read_rows(self, split, range(*slice(start, stop).indices(self.num_windows(split))))

    def verify(self) -> list[str]:
        """Re-hashes every file of the store; returns what is wrong, a line each."""
        wrong: list[str] = []
        for split in self.splits:
            try:
                path = self.files.place(header_name(split))
                data = self.files.read(header_name(split))
                described = is_header(data, path, self.info, split)
            except FileNotFoundError:
                described = False
            except TokenStoreError as error:
                wrong.append(str(error))
                continue
            if not described:
                wrong.append(f"{path} does not describe this store's array; {REDO}.")
        try:
            if not self.fits(self._plan):
                wrong.append(f"{self.files.place(PLAN)} does not list the rows that {INFO} counts.")
        except TokenStoreError as error:
            wrong.append(str(error))
        try:
            _ = self.made_from
        except TokenStoreError as error:
            wrong.append(str(error))
        if (record := self.files.read(INFO)) != to_json(json.loads(record)):
            wrong.append(f"{self.files.place(INFO)} is not as it was written; {REDO}.")
        for split, shard in self.info.shards():
            try:
                self.check_shard(split, shard)
            except TokenStoreError as error:
                wrong.append(str(error))
        if not wrong and (found := self._states_hash()) != self.info.extra.get(STATES_HASH, found):
            wrong.append(f"{self.files.place(STATES)} holds numbers of another store; {REDO}.")
        wrong += [
            f"{self.files.place(MANIFEST, name)} commits no shard of this store; delete it."
            for name in sorted(self.orphaned_parts())
        ]
        return wrong

    def check_shard(self, split: str, shard: int) -> None:
        """Reads and re-hashes one shard. Raises TokenStoreError, naming what is wrong."""
        data, part = self._read(split, shard)
        digest = hashlib.sha256(data).hexdigest()
        self._compare(self.shard_file(split, shard), part, sha256=digest)
        self._decode(
            self.shard_file(split, shard), lambda: decode_shard(self.info, split, shard, data)
        )
        self.states(split, shard)

    def states(self, split: str, shard: int) -> pa.Table | None:
        """Returns what else is known of a shard's frames: see `pipeline.store.states`."""
        return read_states(self.files, self.info, split, shard)

    def _states_hash(self) -> str | None:
        states = States.of(self.info)
        if states is None:
            return None
        tables = (self.states(*shard) for shard in self.info.shards())
        return hash_states({name: states.values(t, name) for name in states.widths} for t in tables)

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

    def orphaned_parts(self) -> set[str]:
        """Names manifest parts that commit no shard of the plan."""
        return self._part_names() - {part_name(*shard) for shard in self.info.shards()}

    def missing(self) -> list[tuple[str, int]]:
        """Lists the shards that no manifest part commits."""
        parts = self._part_names()
        return [(s, n) for s, n in self.info.shards() if part_name(s, n) not in parts]

    def _part_names(self) -> set[str]:
        return set(self.files.names(MANIFEST))

    def _check_complete(self) -> None:
        if PLAN not in self.files.names():
            raise TokenStoreError(f"{self.files.place(PLAN)} is missing; {REDO}.")
        parts = self._part_names()
        total = sum(self.info.num_shards(split) for split in self.splits)
        for split, shard in self.info.shards():
            if part_name(split, shard) not in parts:
                raise TokenStoreError(
                    f"{self.root} is unfinished: shard {shard} of {split} is missing, "
                    f"{len(parts)} of {total} are there; {REDO}."
                )

    def shard_file(self, split: str, shard: int) -> Place:
        """Returns where a shard lies. Raises TokenStoreError if that leads out of the store."""
        return self.files.place(shard_name(split, shard))

    def part(self, split: str, shard: int) -> dict[str, Any]:
        """Returns what commits a shard: see `PART_SCHEMA`."""
        part = read_part(self.files, part_name(split, shard))
        path = self.files.place(MANIFEST, part_name(split, shard))
        self._compare(path, part, split=split, shard=shard, fingerprint=self.fingerprint)
        return part

    def _compare(self, path: Place, part: Mapping[str, Any], **found: Any) -> None:
        for key, value in found.items():
            if part[key] != value:
                state = "is missing or empty" if (key, value) == ("bytes", 0) else "is damaged"
                raise TokenStoreError(
                    f"{path} {state}: {key} is {value}, its manifest says {part[key]}; {REDO}."
                )


def spread_rows(total: int, most: int) -> list[int]:
    """Returns at most so many of `total` rows, evenly spread from the first to the last."""
    return [int(row) for row in np.linspace(0, total - 1, min(most, total)).round()]


def read_rows(store: TokenStore, split: str, rows: Sequence[int]) -> NDArray[np.int64]:
    """Returns windows as int64 [n, t, h, w], in the order of `rows`; reads each shard once."""
    shards, places = np.divmod(np.asarray(rows, dtype=np.int64), store.info.shard_windows)
    tokens = np.empty((len(rows), *store.grid), dtype=np.int64)
    for shard in np.unique(shards).tolist():
        mine = shards == shard
        tokens[mine] = store.read_windows(split, shard, places[mine])
    return tokens
