"""What the processes of one run tell one another."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from pipeline.errors import PipelineError


@contextmanager
def all_alive() -> Iterator[None]:
    """Turns what torch says when another process is gone into a line for the user."""
    try:
        yield
    except RuntimeError:
        raise PipelineError(
            "another process of this run has stopped: see what it said. Run the same command "
            "again, it goes on with what is missing."
        ) from None


def summed(fabric: Fabric, count: int) -> int:
    """Adds up what the processes say, when the last of them has said it."""
    with all_alive():
        total = fabric.all_reduce(torch.tensor(count, device=fabric.device), reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return int(total)


def gathered(fabric: Fabric, lines: list[str]) -> list[str]:
    """Returns the lines of all processes, each once."""
    with all_alive():
        every = [fabric.broadcast(lines, src=rank) for rank in range(fabric.world_size)]
    return list(dict.fromkeys(itertools.chain.from_iterable(every)))


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Says whether a flag is up in any process."""
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return bool(total > 0)


@contextmanager
def together(fabric: Fabric, what: str) -> Iterator[None]:
    """Lets all processes fail if the first one fails to do `what` in here."""
    done = False
    try:
        yield
        done = True
    finally:  # None may wait for a process that has left.
        done = fabric.broadcast(done)
    if not done:
        raise PipelineError(f"the first process could not {what}; it says why.")
