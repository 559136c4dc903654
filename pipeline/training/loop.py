"""The Fabric loop: steps, accumulation, checkpoints, exact resume, signals, log."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.profiler import record_function

from pipeline.errors import ConfigError, FrameError, PipelineError, StoppedError, StorageError
from pipeline.progress import progress
from pipeline.ranks import any_rank, together
from pipeline.seeds import step_seed
from pipeline.training.averages import StepMeans, WeightAverage
from pipeline.training.checkpoint import CHECKPOINTS, mend_pointer
from pipeline.training.fsdp import gather, whole
from pipeline.training.log import FILE, LOG_CHECKSUM, Besides, Log, read_log
from pipeline.training.plots import Plots
from pipeline.training.profiling import PART, RECORDED, WARM_UP, profiled
from pipeline.training.signals import stop_requests
from pipeline.training.state import restore_state, save_state
from pipeline.training.task import LoopConfig, Task, learning_rate


def run_loop(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    init: Path | None = None,
    profile: Path | None = None,
    besides: Besides | None = None,
) -> int:
    """Trains to `config.max_steps`, from the last checkpoint of `out` if there is one.

    A new run begins with the last checkpoint in the folder `init` if one is given. A few steps of
    this call are recorded in the folder `profile` if one is given: see `profiled`. The log goes to
    what is `besides`, too. Returns the number of steps done in this call. On one CPU, n steps, a
    stop and n more are bit for bit 2n steps: every draw is seeded by its step. Raises StoppedError
    after a signal, and PipelineError on a loss that is not finite.
    """
    if config.batch_size % (fabric.world_size * config.accumulate):
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {fabric.world_size} processes "
            f"times {config.accumulate} micro-batches."
        )
    module, optimizer = fabric.setup(model, optimizer)
    average = WeightAverage(config.ema_decay)
    start, values = restore_state(fabric, out, model, optimizer, average, init)
    if profile:
        _check_profiled(config.max_steps - start)
    if start >= config.max_steps:
        weights = gather(fabric, average.tensors or model.state_dict())
        if fabric.is_global_zero:
            _mend_finished(task, weights, start, out, besides)
        return 0
    log = None
    if fabric.is_global_zero:
        seen = values.get(LOG_CHECKSUM)
        log = Log(out, resumed_step=start, checksum=seen, keys=task.logged, besides=besides)
    with (
        closing(log) if log else nullcontext(),
        stop_requests() as stops,
        progress(
            task.name, config.max_steps, "step", done=start, shown=fabric.is_global_zero
        ) as advance,
        profiled(profile if fabric.is_global_zero else None) as step_done,
    ):
        _preview(fabric, task, start, model, average)
        means = StepMeans(task)
        for step in range(start, config.max_steps):
            torch.manual_seed(step_seed(config.seed, step, fabric.global_rank))
            batches, problem = _batches(fabric, task, step, means)
            if problem:
                if step > start:
                    save_state(fabric, out, step, model, optimizer, average, task, config, log)
                saved = f" Step {step} is saved: once that is mended, the same command goes on."
                raise FrameError(problem + (saved if step else ""))
            _one_step(fabric, module, optimizer, task, config, step, batches, means)
            step_done()
            if config.ema_decay:
                average.update(model, step + 1)
            done = step + 1
            advance(1)
            last = done == config.max_steps
            if done % config.log_every == 0 or last:
                values = means.summary(fabric)
                if log:
                    log.write(done, values)
                advance(0, loss=values["loss"])
            if done % config.validate_every == 0 or last:
                with average.inside(model):
                    held_out = _validate(model, task)
                if log:
                    log.write(done, {"split": "validation", **held_out})
            _preview(fabric, task, done, model, average)
            stopped = bool(any_rank(fabric, bool(stops)))
            if done % config.checkpoint_every == 0 or last or stopped:
                save_state(fabric, out, done, model, optimizer, average, task, config, log)
            means.restart_clock()
            if stopped and not last:
                raise StoppedError(f"stopped by a signal at step {done}; run it again to go on.")
    return config.max_steps - start


def _check_profiled(left: int) -> None:
    if left < WARM_UP + RECORDED:
        raise ConfigError(
            f"--profile records {RECORDED} steps after the first {WARM_UP}, but only "
            f"{max(0, left)} are left to do; raise max_steps."
        )


def _mend_finished(
    task: Task, weights: Mapping[str, Tensor], step: int, out: Path, besides: Besides | None
) -> None:
    """Makes again what was lost of a run that is done: its result, and tables of its log."""
    mend_pointer(out / CHECKPOINTS)
    if not task.result.exists():  # The checkpoint still has it.
        task.export(weights, step)
    if besides and besides.plots:
        Plots(besides.plots, task.logged, read_log(out / FILE))


def _batches(fabric: Fabric, task: Task, step: int, means: StepMeans) -> tuple[Sequence[Any], str]:
    """Returns this process's part of a step's batch, or why one of the processes has none."""
    began = time.perf_counter()
    batches: Sequence[Any] = ()
    problem = ""
    with record_function(f"{PART}wait for data"):
        try:
            batches = task.batches(step)
        except (FrameError, StorageError, OSError) as error:
            problem = f"{str(error).rstrip('.')}."
    means.waited += time.perf_counter() - began
    if any_rank(fabric, bool(problem)):  # None waits for one that has left.
        said = [fabric.broadcast(problem, src=rank) for rank in range(fabric.world_size)]
        problem = next(filter(None, said))
    return batches, problem


def _one_step(
    fabric: Fabric,
    module: Any,
    optimizer: Any,
    task: Task,
    config: LoopConfig,
    step: int,
    batches: Sequence[Any],
    means: StepMeans,
) -> None:
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    module.train()
    total = torch.zeros((), device=fabric.device)
    for index, micro in enumerate(batches, start=1):
        last = index == len(batches)
        with fabric.no_backward_sync(module, enabled=not last):
            with record_function(f"{PART}forward"):
                loss, values = task.loss(module, micro, step)
            with record_function(f"{PART}backward"):
                fabric.backward(loss / config.accumulate)
        total += loss.detach() / config.accumulate
        means.add(values, 1 / config.accumulate)
    norm = fabric.clip_gradients(
        module, optimizer, max_norm=config.clip_norm or math.inf, error_if_nonfinite=False
    )
    assert norm is not None
    grad_norm = float(whole(norm))
    reduced = fabric.all_reduce(total, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    mean_loss = float(reduced)
    what, value = "loss", mean_loss
    if math.isfinite(mean_loss) and not fabric.strategy.precision.state_dict():
        what, value = "norm of the gradient", grad_norm  # A scaler skips steps where it overflows.
    if not math.isfinite(value):
        raise PipelineError(
            f"the {what} is {value} at step {step + 1}, on {', '.join(task.names(step))}; the last "
            "checkpoint is intact. Lower the learning rate, or set clip_norm."
        )
    with record_function(f"{PART}optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means.add({"loss": mean_loss, "grad_norm": grad_norm}, 1.0)
    means.latest = {"learning_rate": rate}
    means.steps += 1


def _validate(model: nn.Module, task: Task) -> Mapping[str, float]:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        values = task.validate(model)
    model.train(was_training)
    return values


def _preview(
    fabric: Fabric, task: Task, step: int, model: nn.Module, average: WeightAverage
) -> None:
    """Draws from the weights of this step on the first process, if a preview is due."""
    previews = task.previews
    if previews is None or not previews.due(step):
        return
    weights = gather(fabric, average.tensors or model.state_dict())
    with together(fabric, f"draw previews of step {step}"):
        if fabric.is_global_zero:
            previews.add(step, weights)
