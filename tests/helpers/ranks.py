"""Runs `mebt` again and again on several processes that know of one another, and kills them.

    python -m tests.helpers.ranks FOLDER PHASES WORDS...

A phase such as `3`, `2@5` or `2@5!0` says on how many processes, and that after so many finished
shards all of them, or only the one named, are killed. One of those is finished in that phase: who
is killed before the processes have met is waited for until torch gives up, unless what started
them, torchrun or SLURM, ends the others. Torch is imported once and forked.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path

import stages.sample
import stages.tokenize  # noqa: F401  Before the fork.
from stages.__main__ import cli

PR_SET_PDEATHSIG = 1


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def start_rank(rank: int, world_size: int, port: int, words: list[str]) -> int:
    """Forks one process as torchrun would start it; returns its id."""
    if child := os.fork():
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # None outlives who started it.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    where = ["--accelerator", "cpu", "--devices", str(world_size), "--strategy", "ddp"]
    cli([*words, *where])
    raise AssertionError("click exits")


def num_finished(folder: Path) -> int:
    return len(list((folder / "manifest").glob("*.parquet")))


def has_ended(rank: int) -> bool:
    return os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_phase(folder: Path, phase: str, words: list[str]) -> list[int]:
    """Returns the exit codes of the ranks; those of killed ones are negative."""
    size, _, moment = phase.partition("@")
    shards, _, only = moment.partition("!")
    port = free_port()
    ranks = [start_rank(rank, int(size), port, words) for rank in range(int(size))]
    if shards:
        enough = max(int(shards), num_finished(folder) + 1)
        deadline = time.monotonic() + 120
        while num_finished(folder) < enough and not all(map(has_ended, ranks)):
            time.sleep(0.002)
            if time.monotonic() > deadline:
                only = ""  # They hang, and all have to go.
                break
        for rank in [ranks[int(only)]] if only else ranks:
            os.kill(rank, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


if __name__ == "__main__":
    folder, phases, *words = sys.argv[1:]
    for phase in phases.split(","):
        print(phase, *run_phase(Path(folder), phase, words), flush=True)
