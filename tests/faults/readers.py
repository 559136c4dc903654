"""Whether zarr reads the shards of a token store as we do, whatever became of them.

Where either refuses the other has to, but for what ours alone refuses:

* A shard that is missing, or empty and read whole. To zarr it was never written: fill values.
* Few windows of a shard of other bytes than its manifest part says: the index lies at its end.
* Any shard behind a link that leads out of the store.
* All of a store whose `store.json` is not right.

Arrays whose `zarr.json` is not right are left out: we need none, `mebt tokens verify` names them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.errors import TokenStoreError
from pipeline.store.layout import header_name, shard_name
from pipeline.store.reader import TokenStore
from pipeline.store.shards import Tokens, decode_shard, is_header, read_places

REFUSALS = (ValueError, RuntimeError, FileNotFoundError, TokenStoreError)


def different(root: Path) -> list[str]:
    """Returns where zarr reads the shards of a store otherwise than we do, a line each."""
    try:
        store = TokenStore(root, allow_partial=True)
    except TokenStoreError:
        return []
    wrong = []
    for split in store.splits:
        if _has_header(store, split):
            array = zarr.open_array(root / f"{split}.zarr", mode="r")
            for shard in range(store.num_shards(split)):
                wrong += _compare(store, array, split, shard)
    return wrong


def _has_header(store: TokenStore, split: str) -> bool:
    try:
        data = store.files.read(header_name(split))
        return is_header(data, store.root, store.info, split)
    except (FileNotFoundError, TokenStoreError):
        return False


def _compare(store: TokenStore, array: "zarr.Array[Any]", split: str, shard: int) -> Iterator[str]:
    """Reads a shard whole, and chunk by chunk, in both ways."""
    info = store.info
    start, stop = info.shard_rows(split, shard)
    try:
        path = store.shard_file(split, shard)
    except TokenStoreError:
        return
    data = _read(lambda: store.files.read(shard_name(split, shard))) or b""
    whole = _read(lambda: decode_shard(info, split, shard, data))
    theirs = _read(lambda: np.asarray(array[start:stop]))
    yield from _judge(str(path), whole, theirs, may_refuse=not data)
    part = _read(lambda: store.part(split, shard))
    size = part["bytes"] if part else len(data)
    for first in range(start, stop, info.chunk_windows):
        rows = np.arange(first, min(first + info.chunk_windows, stop))
        few = _read(lambda rows=rows: read_places(info, path, size, rows - start))
        theirs = _read(lambda rows=rows: np.asarray(array[rows[0] : rows[-1] + 1]))
        may_refuse = not data or len(data) != size
        yield from _judge(f"{path}, from window {first}", few, theirs, may_refuse=may_refuse)


def _read(read: Callable[[], Any]) -> Any:
    """Returns what is read, or None if it is refused."""
    try:
        return read()
    except REFUSALS:
        return None


def _judge(
    where: str, ours: Tokens | None, theirs: Tokens | None, *, may_refuse: bool
) -> Iterator[str]:
    if ours is None:
        if theirs is not None and not may_refuse:
            yield f"{where}: zarr reads what we refuse"
    elif theirs is None:
        yield f"{where}: zarr refuses what we read"
    elif not np.array_equal(ours, theirs):
        yield f"{where}: zarr reads other tokens"
