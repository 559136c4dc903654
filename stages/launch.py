"""Where a command runs: options, and the start of Fabric; apart, as Fabric is slow to import."""

import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.parallel import ParallelStrategy
from lightning_fabric.utilities import rank_zero_only

from pipeline.config import FixedPrecision, Precision
from pipeline.errors import ConfigError, StoppedError
from pipeline.precision import settle
from stages.options import resolve_device


@dataclass(frozen=True)
class Launch:
    """Where the command line says to run; called with a precision, it starts Fabric there."""

    accelerator: str
    where: Mapping[str, Any]
    """Further arguments of Fabric's."""

    def __call__(self, precision: FixedPrecision = "32-true") -> Fabric:
        """Starts Fabric, which reads torchrun's and SLURM's variables by itself."""
        return _launch(self.accelerator, dict(self.where), precision)

    def settle(self, key: str, asked: Precision, recorded: object) -> FixedPrecision:
        """Returns what `auto`, the value of `key`, stands for here, and says it: see `settle`."""
        precision, said = settle(asked, recorded, _device(self.accelerator))
        if said and not rank_zero_only.rank:  # type: ignore[attr-defined]
            print(f"{key} auto: {said}", file=sys.stderr, flush=True)
        return precision


def sharding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `fabric_options`, with `fsdp` as a further strategy."""
    return fabric_options(command, strategies=("auto", "ddp", "fsdp"))


def fabric_options(
    command: Callable[..., Any], *, strategies: Sequence[str] = ("auto", "ddp")
) -> Callable[..., Any]:
    """Adds where to run: `--accelerator`, `--devices`, `--nodes`, `--strategy`.

    The command gets them as one argument `launch`, to call with the precision.
    """

    @functools.wraps(command)
    def run(*, accelerator: str, devices: str, nodes: int, strategy: str, **rest: Any) -> Any:
        where = {"devices": devices, "num_nodes": nodes, "strategy": strategy}
        try:
            return command(launch=Launch(accelerator, where), **rest)
        except StoppedError:
            # Rank 0 speaks for all: when another process leaves with a code that is not 0, Fabric
            # kills rank 0 before it could say "run me again".
            if rank_zero_only.rank:  # type: ignore[attr-defined]
                return None
            raise

    for option in (
        click.option(
            "--strategy",
            type=click.Choice(strategies),
            default="auto",
            show_default=True,
            help="How processes share the work; auto: ddp if there are several."
            + (" fsdp: each keeps a slice of the model." if "fsdp" in strategies else ""),
        ),
        click.option(
            "--nodes",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Number of machines.",
        ),
        click.option(
            "--devices",
            default="1",
            show_default=True,
            help="Devices per machine: a number, a list such as 0,1, or auto for all.",
        ),
        click.option(
            "--accelerator",
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            default="auto",
            show_default=True,
        ),
    ):
        run = option(run)
    return run


def _launch(
    accelerator: str, where: dict[str, Any], precision: FixedPrecision = "32-true"
) -> Fabric:
    devices = where["devices"]
    if not re.fullmatch(r"auto|[1-9][0-9]{0,5}|[0-9]{1,6}(,[0-9]{1,6})+", devices):
        raise ConfigError(f"--devices {devices!r}: give a number, a list such as 0,1, or auto.")
    options = {**where, "devices": int(devices) if devices.isdigit() else devices}
    if precision == "16-mixed":
        _check_half_precision(accelerator, where["strategy"])
    if options["strategy"] == "fsdp":
        # Fabric's own "fsdp" is FSDP1, for GPUs only; this is FSDP2, and `apply_fsdp` applies it.
        options["strategy"] = ModelParallelStrategy(lambda model, _: model)
    try:
        fabric = Fabric(accelerator=accelerator, precision=precision, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot start on --accelerator {accelerator} --devices {devices}: {error}"
        ) from None
    except KeyError as error:  # A variable that srun sets and salloc does not.
        raise ConfigError(
            f"{error.args[0]} is not set; inside a SLURM job start with srun."
        ) from None
    _check_started(fabric, where["num_nodes"])
    fabric.launch()
    if (first := fabric.broadcast(precision)) != precision:
        raise ConfigError(
            f"precision auto is {precision} for process {fabric.global_rank}, but {first} for the "
            "first: machines of several kinds; choose one precision."
        )
    return fabric


def _device(accelerator: str) -> str:
    return resolve_device("auto") if accelerator == "auto" else accelerator


def _check_half_precision(accelerator: str, strategy: str) -> None:
    """Refuses float16 where Fabric has no scaler for it, or would use another precision unasked."""
    kind = _device(accelerator)
    if kind == "cpu" or strategy == "fsdp":
        where = "on a CPU" if kind == "cpu" else "with --strategy fsdp"
        raise ConfigError(f"precision 16-mixed does not work {where}; use bf16-mixed.")


def _check_started(fabric: Fabric, nodes: int) -> None:
    """Refuses another number of processes than the command line asks for."""
    strategy = fabric.strategy
    parallel = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else None
    asked = nodes * len(parallel or (fabric.device,))
    started = fabric.world_size
    if TorchElasticEnvironment.detect():
        started = TorchElasticEnvironment().world_size()
    elif tasks := os.environ.get("SLURM_STEP_NUM_TASKS"):  # Set by srun only.
        started = int(tasks)
    if started != asked:
        raise ConfigError(
            f"{started} processes were started, but --devices and --nodes ask for {asked}; let "
            "them agree, and inside a SLURM job start with srun."
        )
