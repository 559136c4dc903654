"""Ids of one split of a store as an `.npy` [N, t, h, w]."""

from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from pipeline.progress import progress
from pipeline.storage.files import replacing
from pipeline.store.reader import TokenStore


def export_npy(store: TokenStore, split: str, out: Path) -> int:
    """Writes the ids of a split as one array; returns how many windows they are.

    Raises PipelineError if `out` is there already.
    """
    if out.exists():
        raise PipelineError(f"{out} exists; choose another --out.")
    count = store.num_windows(split)
    with replacing(out) as temporary:
        array = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=store.info.dtype, shape=(count, *store.grid)
        )
        with progress("export", count, "window") as advance:
            for shard in range(store.num_shards(split)):
                start, stop = store.shard_rows(split, shard)
                array[start:stop] = store.read_shard(split, shard)
                advance(stop - start)
        array.flush()
        del array
    return count
