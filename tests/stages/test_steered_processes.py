"""Conditions on two processes, sharded, compiled and in half precision: as on one."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.small import Run, fork, run_command
from tests.helpers.steered import Steered
from tests.stages.test_processes import (
    SAME,
    TWO,
    assert_same_weights,
    run_without_kernels,
)

KNOWS = ("--set", "model.conditions=[label,speed,key:integers]")


@pytest.fixture
def flow(tmp_path: Path) -> Steered:
    return Steered(tmp_path)


def on_two(flow: Steered, words: list[str], *, run: Run = run_command) -> None:
    """Runs a command as two SLURM tasks."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_NODEID": "0"}
    shared |= {"SLURM_JOB_NAME": "t", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    words = [*words, *TWO, "--params", str(flow.root / "params.yaml")]
    tasks = [fork(words, run=run, SLURM_PROCID=n, SLURM_LOCALID=n, **shared) for n in "01"]
    for task in tasks:
        task.join(100)
        assert task.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_the_same_of_conditions_as_one(flow: Steered, strategy: str) -> None:
    more = (*SAME, "--set", "train.max_steps=4", *KNOWS)
    flow.ok("train", *flow.train_words("one", *more))
    on_two(flow, ["train", *flow.train_words("two", *more), "--strategy", strategy])
    assert_same_weights(flow.root / "one", flow.root / "two")


@pytest.mark.slow
def test_conditions_go_together_with_slices_compiling_and_computing_again(flow: Steered) -> None:
    more = (*SAME, "--set", "train.max_steps=2", "--set", "train.validation_windows=1", *KNOWS)
    more += ("--set", "model.layers=[dense]", "--set", "model.num_latents=0")
    flow.ok("train", *flow.train_words("plain", *more))
    more += ("--set", "train.compile=true", "--set", "train.activation_checkpointing=true")
    words = ["train", *flow.train_words("all", *more), "--strategy", "fsdp"]
    on_two(flow, words, run=run_without_kernels)
    assert_same_weights(flow.root / "plain", flow.root / "all")


@pytest.mark.slow
def test_two_processes_draw_what_one_does_with_guidance(flow: Steered) -> None:
    flow.train("run")
    more = ["--label", "run", "--label", "sit", "--set", "sample.guidance=2"]
    flow.sample("one", *more)
    on_two(flow, ["sample", *flow.sample_words("two", *more), "--strategy", "ddp"])
    np.testing.assert_array_equal(flow.tokens("one"), flow.tokens("two"))


@pytest.mark.slow
def test_half_precision_learns_the_same_of_conditions_and_draws(flow: Steered) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        flow.train(precision, "--set", f"train.precision={precision}")
        log = (flow.root / precision / "metrics.jsonl").read_text("utf-8")
        lines = map(json.loads, log.splitlines())
        losses.append([line["val_loss"] for line in lines if "val_loss" in line][-1])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    more = ["--label", "run", "--set", "sample.guidance=2"]
    flow.sample("asked", *more, "--set", "sample.precision=bf16-mixed", run="bf16-mixed")
    assert flow.tokens("asked").shape == (6, 3, 2, 2)
