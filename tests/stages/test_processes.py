"""`mebt train` on two processes: the same run, however they are started and share the work."""

import errno
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.training import checkpoint
from tests.helpers.small import ROOT, Flow, run_command
from tests.stages.test_train import SMOOTH

Run = Callable[[list[str], dict[str, str]], None]
TWO = ("--accelerator", "cpu", "--devices", "2")
SAME = ("--set", "model.residual_dropout=0.0", "--set", "train.accumulate=2")
SAME += SMOOTH
SAME += ("--set", "train.clip_norm=0.1")  # Dropout would differ: each process draws its own.


def run_on_a_full_disk(arguments: list[str], environment: dict[str, str]) -> None:
    saved = []

    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        saved.append(path)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    checkpoint.save_file = save  # type: ignore[assignment]
    run_command(arguments, environment)


def run_without_kernels(arguments: list[str], environment: dict[str, str]) -> None:
    compile_module = torch.nn.Module.compile
    torch.nn.Module.compile = functools.partialmethod(compile_module, backend="aot_eager")
    run_command(arguments, environment)


def srun(flow: Flow, *more: str, out: str, run: Run = run_command) -> list[BaseProcess]:
    """Starts `mebt train` as two SLURM tasks."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_NODEID": "0"}
    shared |= {"SLURM_JOB_NAME": "t", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    more = (*TWO, *more)
    return [flow.fork("train", *more, out=out, run=run, **shared, **rank) for rank in ranks]


def torchrun(flow: Flow, *more: str, out: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, "-m", "stages"]
    command += flow.arguments("train", *TWO, *more, out=out)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)


def state(run: Path) -> dict[str, torch.Tensor]:
    step = (run / "checkpoints" / "last").read_text().strip()
    return load_file(run / "checkpoints" / step / "state.safetensors")


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = state(one), state(two)
    assert first.keys() == second.keys()
    for name in (name for name in first if not name.startswith("optimizer")):
        torch.testing.assert_close(second[name], first[name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(flow: Flow) -> None:
    more = (*SAME, "--set", "train.max_steps=20")
    flow.ok("train", *more, out="one")
    assert flow.start("train", *TWO, *more, out="two").wait(100) == 0
    assert_same_weights(flow.root / "one", flow.root / "two")


@pytest.mark.slow
def test_a_run_goes_on_under_another_strategy_and_number_of_processes(flow: Flow) -> None:
    flow.ok("train", *SAME, "--set", "train.max_steps=20", out="whole")
    more = (*SAME, "--set", "train.activation_checkpointing=true")
    torchrun(flow, *more, "--strategy", "fsdp", "--set", "train.max_steps=7", out="moved")
    for strategy, steps in (("ddp", 11), ("fsdp", 16)):
        more = (*SAME, "--strategy", strategy, "--set", f"train.max_steps={steps}")
        for task in srun(flow, *more, out="moved"):
            task.join(100)
            assert task.exitcode == 0
    flow.ok("train", *SAME, "--set", "train.max_steps=20", out="moved")
    assert_same_weights(flow.root / "whole", flow.root / "moved")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_of_them(flow: Flow, rank: int) -> None:
    tasks = srun(flow, "--strategy", "fsdp", "--set", "train.max_steps=100000", out="stopped")
    log = flow.root / "stopped" / "metrics.jsonl"
    while tasks[rank].is_alive() and not (log.exists() and log.stat().st_size > 500):
        time.sleep(0.005)
    assert tasks[rank].pid is not None
    os.kill(tasks[rank].pid, signal.SIGUSR1)
    for task in tasks:
        task.join(30)
    assert [task.exitcode for task in tasks] == [75, 0]  # srun reports the highest.
    assert state(flow.root / "stopped")


@pytest.mark.slow
def test_a_full_disk_stops_all_processes_and_the_run_goes_on(flow: Flow) -> None:
    tasks = srun(flow, "--strategy", "ddp", out="full", run=run_on_a_full_disk)
    for task in tasks:
        task.join(60)
    assert [task.exitcode for task in tasks] == [1, 1]
    assert (flow.root / "full/checkpoints/last").read_text() == "step-00000002\n"
    for task in srun(flow, "--strategy", "ddp", out="full"):
        task.join(60)
        assert task.exitcode == 0


@pytest.mark.slow
def test_muon_steps_slices_as_it_does_whole_matrices(flow: Flow) -> None:
    more = (*SAME, "--set", "train.optimizer=muon", "--set", "train.max_steps=2")
    flow.ok("train", *more, out="plain")
    for task in srun(flow, *more, "--strategy", "fsdp", out="sliced"):
        task.join(100)
        assert task.exitcode == 0
    first, second = (
        load_file(flow.root / out / "model.safetensors") for out in ("plain", "sliced")
    )
    for name, tensor in first.items():  # Two steps of 6e-4, by directions computed in bfloat16.
        assert float((second[name] - tensor).abs().mean()) < 3e-4, name


@pytest.mark.slow
def test_slices_compiling_and_computing_again_go_together(flow: Flow) -> None:
    """Without kernels: to compile those takes a minute, and test_train.py does."""
    more = (*SAME, "--set", "model.layers=[dense]", "--set", "model.num_latents=0")
    more += ("--set", "train.max_steps=2", "--set", "train.validation_windows=1")
    flow.ok("train", *more, out="plain")
    more += ("--set", "train.compile=true", "--set", "train.activation_checkpointing=true")
    for task in srun(flow, *more, "--strategy", "fsdp", out="all", run=run_without_kernels):
        task.join(100)
        assert task.exitcode == 0
    assert_same_weights(flow.root / "plain", flow.root / "all")
