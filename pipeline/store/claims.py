"""The processes of one run fill one token store: each its share of the missing shards."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from lightning_fabric import Fabric
from numpy.typing import NDArray

from pipeline.progress import progress
from pipeline.ranks import all_alive, summed
from pipeline.storage.bucket import Bucket
from pipeline.storage.places import Folder, Inside, Place, Storage, open_storage
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.update import Known, Work, prepare_store, switch
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class Share:
    """What one process has to do."""

    writer: StoreWriter
    shards: list[tuple[str, int]]
    """Missing shards (split, number) that are its own."""
    total: int
    """Windows of the missing shards of all processes."""
    advance: Callable[[int], None]
    """To be called after each `batch_size` windows of a shard, and after its rest."""
    known: Known | None
    """Tokens that need not be made, if the store's frames have changed."""
    kept: int
    """Windows that stay, of all processes, if the store's frames have changed."""


@contextmanager
def share_out(
    root: Place,
    info: StoreInfo,
    plan: pa.Table,
    *,
    fabric: Fabric,
    batch_size: int,
    what: str,
    unit: str,
    source: pa.Table | None = None,
    overwrite: bool = False,
    update: bool = False,
) -> Iterator[Share]:
    """Makes or opens a store, as `prepare_store` does; yields this process's share.

    Returns when all have done theirs.

    The processes tell one another of every batch. So the progress shown is that of all, none waits
    for others longer than a batch takes, and when one is gone, the others stop. Raises
    PipelineError in that case, when another run writes to `root`, and as `prepare_store` does.
    """
    rank, first = fabric.global_rank, fabric.is_global_zero
    files = open_storage(root)
    with files.lock() if first else nullcontext(lambda: None) as let_others_in:
        work = Work([])
        if first:
            work = prepare_store(
                files, info, plan, source=source, overwrite=overwrite, update=update
            )
            if work.said:
                print(f"{root}: other frames than before: {work.said}", file=sys.stderr, flush=True)
            let_others_in()
        with all_alive():
            work = fabric.broadcast(work)
        size, missing = fabric.world_size, work.missing
        shares = [missing[number::size] for number in range(size)]
        rows = [[len(range(*info.shard_rows(*shard))) for shard in share] for share in shares]
        rounds = max(sum(-(-count // batch_size) for count in counts) for counts in rows)
        total = sum(map(sum, rows))
        with (
            nullcontext() if first else files.lock(shared=True),
            progress(what, total, unit, shown=first) as show,
        ):

            def advance(count: int) -> None:
                nonlocal rounds
                rounds -= 1
                show(summed(fabric, count))

            writer = StoreWriter(_below(files, work.folder))
            others = [
                (TokenStore(_below(files, name), allow_partial=True), whole)
                for name, whole in work.taken
            ]
            known = Known(writer.store, others) if others else None
            yield Share(writer, shares[rank], total, advance, known, work.kept)
            while rounds:
                advance(0)
            summed(fabric, 0)  # The last shards are written.
            if work.folder:
                if first and not writer.store.missing():  # None may hold a damaged frame.
                    switch(files, work.folder)
                summed(fabric, 0)


def _below(files: Folder | Bucket, folder: str) -> Storage:
    return Inside(files, folder) if folder else files


def fill_shards(share: Share, make: Callable[[range], NDArray[np.int64]], batch_size: int) -> int:
    """Makes the tokens of every row of this process's shards; returns in how many batches."""
    batches = 0
    for split, shard in share.shards:
        rows = range(*share.writer.info.shard_rows(split, shard))
        parts = []
        for start in range(0, len(rows), batch_size):
            parts.append(make(rows[start : start + batch_size]))
            share.advance(len(parts[-1]))
        share.writer.write_shard(split, shard, np.concatenate(parts))
        batches += len(parts)
    return batches
