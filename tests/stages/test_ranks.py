"""Several processes of one run: what one of them refuses, all of them do."""

import multiprocessing
import os
import socket
from pathlib import Path

from stages.__main__ import cli
from tests.helpers.small import Flow


def run_rank(rank: int, port: int, arguments: list[str], output: Path) -> None:
    """Runs a command as torchrun starts it."""
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
    ours = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {**ours, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cli(arguments)


def test_every_process_leaves_with_the_refusal_of_the_first(flow: Flow) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stages.train"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = ("--set", "train.learning_rate=0.5")
    words = flow.arguments("train", *more, "--accelerator", "cpu", "--devices", "2")
    outputs = [flow.root / f"rank-{rank}.txt" for rank in range(2)]
    ranks = [
        context.Process(target=run_rank, args=(rank, port, words, output), daemon=True)
        for rank, output in enumerate(outputs)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [1, 1]
    for output in outputs:
        (line,) = [line for line in output.read_text().splitlines() if line.startswith("Error: ")]
        assert "config.learning_rate = 0.001, not 0.5" in line
