"""The processes of one run fill one token store: each its share of the missing shards."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pyarrow as pa
from lightning_fabric import Fabric

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
    advance: Callable[..., None]
    """To be called after each `batch_size` windows of a shard, and after its rest, with how many;
    if there are `steps`, after each step of these, with the frames; or with those that were
    `known`."""
    steps: Sequence[int]
    """Units of one window that each step of a batch makes; see `claim_shards`."""
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
    steps: Sequence[int] = (1,),
) -> Iterator[Share]:
    """Makes or opens a store, as `prepare_store` does; yields this process's share.

    Returns when all have done theirs.

    The processes tell one another of every batch. So the progress shown is that of all, none waits
    for others longer than a batch takes, and when one is gone, the others stop. If windows are made
    in `steps`, that holds for each step: they are the units of one window that each step makes.
    Raises PipelineError when a process is gone, when another run writes to `root`, and as
    `prepare_store` does.
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
        total, batches = _count(info, shares, batch_size)
        with nullcontext() if first else files.lock(shared=True):
            writer = StoreWriter(_below(files, work.folder))
            known, mine = _known(files, writer, work), shares[fabric.global_rank]
            with _in_step(fabric, batches, what, total, unit, steps) as advance:
                yield Share(writer, mine, total, advance, steps, known, work.kept)
            if work.folder:
                if first and not writer.store.missing():  # None may hold a damaged frame.
                    switch(files, work.folder)
                summed(fabric, 0)


@contextmanager
def _in_step(
    fabric: Fabric, batches: int, what: str, total: int, unit: str, steps: Sequence[int]
) -> Iterator[Callable[..., None]]:
    """Yields what counts a batch of every process at once; then waits until all have done theirs.

    `batches` are those of the process that has most, and `total` the windows of all.
    """
    rounds = batches * len(steps)
    with progress(what, total * sum(steps), unit, shown=fabric.is_global_zero) as show:

        def advance(count: int, *, known: int = 0) -> None:
            nonlocal rounds
            rounds -= 1
            show(summed(fabric, count), known=summed(fabric, known) if len(steps) > 1 else 0)

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
