"""Writes token stores, shard by shard, each whole or not at all.

`pipeline.store.layout` says what they look like.
"""

import contextlib
import hashlib
import zlib
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import as_dict
from pipeline.errors import TokenStoreError
from pipeline.frame_list import FRAMES
from pipeline.storage.files import to_json
from pipeline.storage.outputs import list_differences, prepare_output
from pipeline.storage.places import Place, Storage, open_storage
from pipeline.storage.sealed import to_parquet
from pipeline.store.layout import (
    INFO,
    MANIFEST,
    PLAN,
    StoreInfo,
    hash_plan,
    header_name,
    part_name,
    read_part,
    shard_name,
    store_fingerprint,
    store_record,
    write_part,
)
from pipeline.store.reader import TokenStore
from pipeline.store.shards import array_header, encode_shard
from pipeline.store.states import write_states


class StoreWriter:
    """Fills a store shard by shard. A shard is there as a whole, or not at all."""

    def __init__(self, root: Place | Storage) -> None:
        self.store = TokenStore(root, allow_partial=True)
        self.info, self.files = self.store.info, self.store.files

    def write_shard(
        self, split: str, shard: int, tokens: NDArray[Any], states: pa.Table | None = None
    ) -> None:
        """Writes the tokens [n, t, h, w] of a whole shard, then commits it in the manifest.

        `states` are what else is known of its frames: see `pipeline.store.states`.
        """
        start, stop = self.info.shard_rows(split, shard)
        if tokens.shape != (stop - start, *self.info.grid):
            raise ValueError(f"shard {shard} of {split} cannot hold tokens of {tokens.shape}.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.info.codebook_size:
            raise ValueError(
                f"tokens {tokens.min()} … {tokens.max()} do not fit a codebook of "
                f"{self.info.codebook_size}."
            )
        if states is not None:
            write_states(self.files, split, shard, states)
        data = encode_shard(self.info, split, shard, tokens)
        self.files.write(shard_name(split, shard), data)
        part = {
            "split": split,
            "shard": shard,
            "rows": stop - start,
            "bytes": len(data),
            "crc32": zlib.crc32(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "fingerprint": self.store.fingerprint,
        }
        write_part(self.files, part)

    def unfinished(self) -> list[tuple[str, int]]:
        """Lists the shards that are missing or damaged; what commits damaged ones is withdrawn."""
        for name in self.store.orphaned_parts():
            self.files.remove(f"{MANIFEST}/{name}")
        for split, shard in set(self.info.shards()) - set(self.store.missing()):
            try:
                self.store.check_shard(split, shard)
            except TokenStoreError:
                self.files.remove(f"{MANIFEST}/{part_name(split, shard)}")
        return self.store.missing()


def create_store(
    root: Place | Storage,
    info: StoreInfo,
    plan: pa.Table,
    *,
    source: pa.Table | None = None,
    overwrite: bool = False,
) -> StoreWriter:
    """Makes an empty store, or opens the unfinished or finished one of the same content.

    `source` lists the frames that its tokens are made from, if they are: see `SOURCE_SCHEMA`.
    The store may have lost its store.json: what commits its shards tells that they are of it. Call
    it under the lock of its storage. Raises TokenStoreError, naming the first difference, if `root`
    holds another store, unless `overwrite` allows to delete it, or something else.
    """
    files = open_storage(root)
    wanted = store_fingerprint(info, hash_plan(plan))
    if INFO in files.names() or committed_fingerprints(files) != {wanted}:
        prepare_output(
            files,
            INFO,
            lambda: _differences(files, info, wanted),
            what="token store",
            error=TokenStoreError,
            overwrite=overwrite,
            first=MANIFEST,
        )
    describe_store(files, info, plan, source)
    return StoreWriter(files)


def describe_store(
    files: Storage, info: StoreInfo, plan: pa.Table, source: pa.Table | None
) -> None:
    """Writes every file of a store that says what it holds: all but shards and what commits them.

    A new store begins with its store.json, by which it is known. One that there is gets it last:
    until then it is the store that it was.
    """
    record = store_record(info, hash_plan(plan))
    written = {INFO: to_json(record if source is None else {**record, "frames": len(source)})}
    written |= {PLAN: to_parquet(plan)}
    if source is not None:
        written[FRAMES] = to_parquet(source)
    written |= {header_name(split): array_header(info, split) for split in info.counts}
    if INFO in files.names():
        written[INFO] = written.pop(INFO)
    for name, data in written.items():
        files.write(name, data)


def committed_fingerprints(files: Storage) -> set[str]:
    """Says which stores the shards are of; what is damaged says nothing."""
    fingerprints = set()
    for name in files.names(MANIFEST):
        with contextlib.suppress(TokenStoreError):
            fingerprints.add(read_part(files, name)["fingerprint"])
    return fingerprints


def _differences(files: Storage, info: StoreInfo, wanted: str) -> list[str]:
    """Lists how the store that is there differs from the one `wanted`, a fingerprint."""
    try:
        store = TokenStore(files, allow_partial=True)
    except TokenStoreError as error:
        return [f"another version or by something else ({error})"]
    if store.fingerprint == wanted:
        return []
    theirs, ours = ({**as_dict(about), "fps": None} for about in (store.info, info))
    other_plan = "another plan of windows (videos, labels, captions, hop or seed)"
    return list_differences(theirs, ours) or [other_plan]
