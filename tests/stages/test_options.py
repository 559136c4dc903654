"""Where to run: what is no device is one clear line."""

import errno
import threading

import pytest
from lightning_fabric import Fabric

from pipeline.errors import ConfigError
from stages.__main__ import show_thread_error
from stages.launch import _launch
from stages.options import resolve_device


@pytest.mark.parametrize("devices", ["-1", "abc", "", "1.5", "²", "cuda", "0", "1,", "0,0,0,x"])
def test_devices_are_numbers(devices: str) -> None:
    with pytest.raises(ConfigError, match="give a number, a list such as 0,1, or auto"):
        _launch("cpu", {"devices": devices, "num_nodes": 1, "strategy": "auto"})


def test_a_list_of_devices_is_not_for_a_cpu() -> None:
    with pytest.raises(ConfigError, match="cannot start on --accelerator cpu --devices 0,1: "):
        _launch("cpu", {"devices": "0,1", "num_nodes": 1, "strategy": "auto"})


@pytest.mark.parametrize(
    ("accelerator", "strategy", "where"),
    [("cpu", "auto", "on a CPU"), ("cuda", "fsdp", "with --strategy fsdp")],
)
def test_float16_is_refused_where_it_would_be_something_else(
    accelerator: str, strategy: str, where: str
) -> None:
    options = {"devices": "1", "num_nodes": 1, "strategy": strategy}
    line = f"precision 16-mixed does not work {where}; use bf16-mixed"
    with pytest.raises(ConfigError, match=line):
        _launch(accelerator, options, "16-mixed")


def test_processes_of_which_each_would_choose_another_precision_are_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fabric, "broadcast", lambda *_: "bf16-mixed")  # Of the first process.
    line = "precision auto is 32-true for process 0, but bf16-mixed for the first: machines of sev"
    with pytest.raises(ConfigError, match=line):
        _launch("cpu", {"devices": "1", "num_nodes": 1, "strategy": "auto"})


BATCH = {"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "3", "SLURM_JOB_NAME": "t"}
TASK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SRUN = {**BATCH, **TASK, "SLURM_STEP_NUM_TASKS": "3"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "message"),
    [
        (SRUN, "1", 1, "3 processes were started, but --devices and --nodes ask for 1; let them"),
        (SRUN, "2", 2, "3 processes were started, but --devices and --nodes ask for 4"),
        (
            {**BATCH, **TASK},
            "2",
            1,
            "3 processes were started, but --devices and --nodes ask for 2",
        ),
        (BATCH, "2", 1, "SLURM_NODEID is not set; inside a SLURM job start with srun"),
        (TORCHRUN, "1", 1, "3 processes were started, but --devices and --nodes ask for 1"),
        (TORCHRUN, "2", 1, "3 processes were started, but --devices and --nodes ask for 2"),
    ],
)
def test_as_many_processes_must_be_started_as_are_asked_for(
    environment: dict, devices: str, nodes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        _launch("cpu", {"devices": devices, "num_nodes": nodes, "strategy": "auto"})


def test_one_process_inside_a_slurm_job_needs_no_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    assert _launch("cpu", {"devices": "1", "num_nodes": 1, "strategy": "auto"}).world_size == 1


@pytest.mark.parametrize("name", ["meta", "hip", "xla", "", "cpu:x", "gpu"])
def test_a_device_is_one_that_models_run_on(name: str) -> None:
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_the_cpu_is_there() -> None:
    assert resolve_device("cpu") == "cpu"
    assert _launch("cpu", {"devices": "1", "num_nodes": 1, "strategy": "auto"}).world_size == 1


def test_an_error_that_ends_a_thread_is_one_line_if_a_user_can_mend_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def show(error: Exception) -> str:
        show_thread_error(threading.ExceptHookArgs((type(error), error, None, None)))
        return capsys.readouterr().err

    assert (
        show(OSError(errno.EIO, "Input/output error", "events")) == "events: Input/output error\n"
    )
    assert "ValueError: a bug" in show(ValueError("a bug"))
