"""The processes of one run fill one token store: each its share of the missing shards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pyarrow as pa
import torch
from lightning_fabric import Fabric

from pipeline.errors import PipelineError
from pipeline.progress import progress
from pipeline.storage import Place, open_storage
from pipeline.store_format import StoreInfo
from pipeline.token_store import StoreWriter, create_store


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
    overwrite: bool = False,
) -> Iterator[Share]:
    """Makes or opens a store; yields this process's share; returns when all have done theirs.

    The processes tell one another of every batch. So the progress shown is that of all, none waits
    for others longer than a batch takes, and when one is gone, the others stop. Raises
    PipelineError in that case, when another run writes to `root`, and as `create_store` does.
    """
    rank, first = fabric.global_rank, fabric.is_global_zero
    files = open_storage(root)
    with files.lock() if first else nullcontext(lambda: None) as let_others_in:
        missing = []
        if first:
            missing = create_store(files, info, plan, overwrite=overwrite).unfinished()
            let_others_in()
        with _all_alive():
            missing = fabric.broadcast(missing)
        shares = [missing[number :: fabric.world_size] for number in range(fabric.world_size)]
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
                show(_sum(fabric, count))

            yield Share(StoreWriter(files), shares[rank], total, advance)
            while rounds:
                advance(0)
            _sum(fabric, 0)  # The last shards are written.


@contextmanager
def _all_alive() -> Iterator[None]:
    """Turns what torch says when another process is gone into a line for the user."""
    try:
        yield
    except RuntimeError:
        raise PipelineError(
            "another process of this run has stopped: see what it said. Run the same command "
            "again, it goes on with what is missing."
        ) from None


def _sum(fabric: Fabric, count: int) -> int:
    """Adds up what the processes say, when the last of them has said it."""
    with _all_alive():
        summed = fabric.all_reduce(torch.tensor(count, device=fabric.device), reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    return int(summed)
