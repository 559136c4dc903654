"""The processes of one run fill one token store: each its share of the missing shards."""

import sys
from collections.abc import Callable, Iterator, Sequence
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
from pipeline.store.switch import switch
from pipeline.store.update import Known, Shard, Work, prepare_store
from pipeline.store.writer import StoreWriter


@dataclass(frozen=True)
class Share:
    """What one process has to do."""

    writer: StoreWriter
    shards: list[Shard]
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
def claim_shards(
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
    files, first = open_storage(root), fabric.is_global_zero
    with files.lock() if first else nullcontext(lambda: None) as let_others_in:
        work = Work([])
        if first:
            work = prepare_store(
                files, info, plan, source=source, overwrite=overwrite, update=update
            )
            if work.said:
                print(f"{root}: not as before: {work.said}", file=sys.stderr, flush=True)
            let_others_in()
        with all_alive():
            work = fabric.broadcast(work)
        shares = [work.missing[rank :: fabric.world_size] for rank in range(fabric.world_size)]
        total, rounds = _count(info, shares, batch_size)
        with nullcontext() if first else files.lock(shared=True):
            writer = StoreWriter(_below(files, work.folder))
            known, mine = _known(files, writer, work), shares[fabric.global_rank]
            with _in_step(fabric, rounds, what, total, unit) as advance:
                yield Share(writer, mine, total, advance, known, work.kept)
            if work.folder:
                if first and not writer.store.missing():  # None may hold a damaged frame.
                    switch(files, work.folder)
                summed(fabric, 0)


@contextmanager
def _in_step(
    fabric: Fabric, rounds: int, what: str, total: int, unit: str
) -> Iterator[Callable[[int], None]]:
    """Yields what counts a batch of every process at once; then waits until all have done theirs.

    `rounds` are the batches of the process that has most.
    """
    with progress(what, total, unit, shown=fabric.is_global_zero) as show:

        def advance(count: int) -> None:
            nonlocal rounds
            rounds -= 1
            show(summed(fabric, count))

        yield advance
        while rounds:
            advance(0)
        summed(fabric, 0)  # The last shards are written.


def _count(info: StoreInfo, shares: Sequence[Sequence[Shard]], batch_size: int) -> tuple[int, int]:
    """Counts the windows of all processes, and the batches of the one that has most."""
    rows = [[len(range(*info.shard_rows(*shard))) for shard in share] for share in shares]
    rounds = max(sum(-(-count // batch_size) for count in counts) for counts in rows)
    return sum(map(sum, rows)), rounds


def _known(files: Folder | Bucket, writer: StoreWriter, work: Work) -> Known | None:
    """Opens the stores that tokens are taken from, if there are any."""
    others = [
        (TokenStore(_below(files, name), allow_partial=True), whole) for name, whole in work.taken
    ]
    return Known(writer.store, others) if others else None


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
