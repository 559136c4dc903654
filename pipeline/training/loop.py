"""The Fabric loop: steps, accumulation, checkpoints, exact resume, signals, log."""

import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.profiler import record_function

from pipeline.config import Precision
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    FrameError,
    PipelineError,
    StoppedError,
    StorageError,
)
from pipeline.progress import progress
from pipeline.seeds import step_seed
from pipeline.training.checkpoint import (
    load_last,
    mend_pointer,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from pipeline.training.fsdp import gather, slice_like, slice_optimizer, whole
from pipeline.training.log import FILE, MARK, Log, vouched
from pipeline.training.previews import Previews
from pipeline.training.profiling import PART, RECORDED, WARM_UP, profiled
from pipeline.training.signals import STOP_SIGNALS

FREE_KEYS = (
    *("log_every", "validate_every", "checkpoint_every", "keep_checkpoints"),
    *("activation_checkpointing", "preview_every"),
)
"""Values of a run that may change without changing its weights."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training run needs, whatever it trains."""

    max_steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Windows of one optimizer step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches of one optimizer step."""
    learning_rate: float = 3e-5
    """The highest: after `warmup_steps`, and before `cosine` lets it fall."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    cosine: bool = False
    """Let the learning rate fall to zero along half a cosine; otherwise it is constant."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null: not clipped."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights that is saved; 0: the weights."""
    precision: Precision = "32-true"
    """Of products and attention: 32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed on GPUs and
    processors that multiply in it, else 32-true. Weights and loss stay in float32."""
    seed: int = 0
    """Draws the first weights and whatever training draws."""
    log_every: int = 20
    """Steps from one line of `metrics.jsonl` to the next."""
    validate_every: int = 200
    """Steps from one measurement on held-out windows to the next."""
    checkpoint_every: int = 200
    """Steps from one checkpoint to the next: what a kill may cost."""
    keep_checkpoints: int = 2
    """Checkpoints that stay; older ones are deleted."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "keep_checkpoints", *FREE_KEYS[:3]):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and "
                f"{self.accumulate}."
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in 0 … 2**63 - 1, got {self.seed}.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}.")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains: the parts of the loop that know the model."""

    name: str
    """Shown before the progress."""
    batches: Callable[[int], Sequence[Any]]
    """Step -> this process's part of the global batch, cut into `accumulate` micro-batches."""
    names: Callable[[int], Sequence[str]]
    """Step -> what the windows of its global batch are called."""
    loss: Callable[[nn.Module, Any, int], tuple[Tensor, Mapping[str, Tensor | float]]]
    """(module, micro-batch, step) -> loss and numbers to log."""
    validate: Callable[[nn.Module], Mapping[str, float]]
    """Model -> numbers on held-out windows."""
    export: Callable[[Mapping[str, Tensor], int], None]
    """(weights by name, step) -> writes `result`."""
    result: Path
    rate_name: str
    """What `rate_per_step` counts, such as tokens: logged as `tokens_per_second`."""
    rate_per_step: int
    measures: Sequence[str] = ()
    """Names of all numbers that `loss` and `validate` ever return: columns of the log."""
    previews: Previews | None = None
    """Draws from the weights that are saved, at some steps; None: at none."""

    @property
    def logged(self) -> list[str]:
        """Returns what every line of the log names."""
        return [
            *("split", *self.measures, "loss", "grad_norm", "learning_rate"),
            *(f"{self.rate_name}_per_second", "data_wait", "memory_gb", "seconds_per_step"),
        ]


AVERAGED = ("running_mean", "running_var")
"""Last part of the names of buffers that tell of what the weights compute, as batch norm's do."""


@dataclass
class Average:
    """Moving average of a model's weights and of batch norm's statistics, in float32.

    Other buffers are copied. A codebook among them is a moving average already; one more would
    smear its vectors from where they were to where they were restarted.
    """

    decay: float
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Moves the average towards the model after so many steps: at first fast.

        Else it would hold the weights of the beginning for a few times 1 / (1 - decay) steps.
        """
        decay = min(self.decay, (1 + steps) / (10 + steps))
        parameters = {name for name, _ in model.named_parameters()}
        for name, tensor in model.state_dict().items():
            averaged = name in parameters or name.endswith(AVERAGED)
            if name not in self.tensors or not averaged:
                self.tensors[name] = tensor.detach().clone()
            else:
                self.tensors[name].lerp_(tensor.detach().to(self.tensors[name]), 1 - decay)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Puts the average into the model for a while."""
        if not self.tensors:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)


def learning_rate(step: int, config: LoopConfig) -> float:
    """Warms up linearly, then stays, or falls to zero along half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if not config.cosine:
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate / 2 * (1 + math.cos(math.pi * done))


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
) -> int:
    """Trains to `config.max_steps`, from the last checkpoint of `out` if there is one.

    A new run begins with the last checkpoint in the folder `init` if one is given. A few steps of
    this call are recorded in the folder `profile` if one is given: see `profiled`.
    Returns the number of steps done in this call. On one CPU, n steps, a stop and n more are bit
    for bit 2n steps: every draw is seeded by its step. Raises StoppedError after a signal, and
    PipelineError on a loss that is not finite.
    """
    if config.batch_size % (fabric.world_size * config.accumulate):
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {fabric.world_size} processes "
            f"times {config.accumulate} micro-batches."
        )
    module, optimizer = fabric.setup(model, optimizer)
    average = Average(config.ema_decay)
    start, values = _restore(fabric, out, model, optimizer, average, init)
    if profile and config.max_steps - start < WARM_UP + RECORDED:
        raise ConfigError(
            f"--profile records {RECORDED} steps after the first {WARM_UP}, but only "
            f"{max(0, config.max_steps - start)} are left to do; raise max_steps."
        )
    if start >= config.max_steps:
        weights = gather(fabric, average.tensors or model.state_dict())
        if fabric.is_global_zero:
            mend_pointer(out / "checkpoints")
            if not task.result.exists():  # The checkpoint still has it.
                task.export(weights, start)
        return 0
    log = None
    if fabric.is_global_zero:
        log = Log(out, resumed_step=start, mark=values.get(MARK), keys=task.logged)
    with (
        _stop_requests() as stops,
        progress(
            task.name, config.max_steps, "step", done=start, shown=fabric.is_global_zero
        ) as advance,
        profiled(profile if fabric.is_global_zero else None) as step_done,
    ):
        _preview(fabric, task, start, model, average)
        window = _Window(task, config)
        for step in range(start, config.max_steps):
            torch.manual_seed(step_seed(config.seed, step, fabric.global_rank))
            batches, problem = _batches(fabric, task, step, window)
            if problem:
                if step > start:
                    _save(fabric, out, step, model, optimizer, average, task, config, log)
                saved = f" Step {step} is saved: once that is mended, the same command goes on."
                raise FrameError(problem + (saved if step else ""))
            _one_step(fabric, module, optimizer, task, config, step, batches, window)
            step_done()
            if config.ema_decay:
                average.update(model, step + 1)
            done = step + 1
            advance(1)
            last = done == config.max_steps
            if done % config.log_every == 0 or last:
                values = window.summary(fabric)
                if log:
                    log.write(done, values)
                advance(0, loss=values["loss"])
            if done % config.validate_every == 0 or last:
                with average.inside(model):
                    held_out = _validate(model, task)
                if log:
                    log.write(done, {"split": "validation", **held_out})
            _preview(fabric, task, done, model, average)
            stopped = bool(_any_rank(fabric, bool(stops)))
            if done % config.checkpoint_every == 0 or last or stopped:
                _save(fabric, out, done, model, optimizer, average, task, config, log)
            window.restart_clock()
            if stopped and not last:
                raise StoppedError(f"stopped by a signal at step {done}; run it again to go on.")
    return config.max_steps - start


def _batches(fabric: Fabric, task: Task, step: int, window: "_Window") -> tuple[Sequence[Any], str]:
    """Returns this process's part of a step's batch, or why one of the processes has none."""
    began = time.perf_counter()
    batches: Sequence[Any] = ()
    problem = ""
    with record_function(f"{PART}wait for data"):
        try:
            batches = task.batches(step)
        except (FrameError, StorageError, OSError) as error:
            problem = f"{str(error).rstrip('.')}."
    window.waited += time.perf_counter() - began
    if _any_rank(fabric, bool(problem)):  # None waits for one that has left.
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
    window: "_Window",
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
        window.add(values, 1 / config.accumulate)
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
    window.add({"loss": mean_loss, "grad_norm": grad_norm}, 1.0)
    window.latest = {"learning_rate": rate}
    window.steps += 1


class _Window:
    """Means over the steps since the last line of the log."""

    def __init__(self, task: Task, config: LoopConfig) -> None:
        self.task = task
        self.latest: dict[str, float] = {}
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.steps = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def restart_clock(self) -> None:
        """Keeps the time of a validation, preview or checkpoint out of the speed."""
        if not self.steps:
            self.began = time.perf_counter()

    def add(self, values: Mapping[str, Tensor | float], weight: float) -> None:
        """Counts numbers of one micro-batch; a number that is missing there is no zero."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + weight * float(value)
            self.weights[key] = self.weights.get(key, 0.0) + weight

    def summary(self, fabric: Fabric) -> dict[str, float]:
        """Returns the means, and starts anew."""
        seconds = time.perf_counter() - self.began
        means = {key: total / self.weights[key] for key, total in self.sums.items()}
        speed = self.steps * self.task.rate_per_step / seconds
        found = {
            **means,
            **self.latest,
            f"{self.task.rate_name}_per_second": round(speed, 3),
            "data_wait": round(self.waited / seconds, 6),
            "memory_gb": round(_memory_gb(fabric.device), 3),
            "seconds_per_step": round(seconds / self.steps, 5),
        }
        self._reset()
        return found


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _validate(model: nn.Module, task: Task) -> Mapping[str, float]:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        values = task.validate(model)
    model.train(was_training)
    return values


def _preview(fabric: Fabric, task: Task, step: int, model: nn.Module, average: Average) -> None:
    """Draws from the weights of this step on the first process, if a preview is due."""
    previews = task.previews
    if previews is None or not previews.due(step):
        return
    weights = gather(fabric, average.tensors or model.state_dict())
    with _together(fabric, f"draw previews of step {step}"):
        if fabric.is_global_zero:
            previews.add(step, weights)


def _any_rank(fabric: Fabric, flag: bool) -> bool:
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return float(total) > 0  # type: ignore[arg-type]


def _save(
    fabric: Fabric,
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    task: Task,
    config: LoopConfig,
    log: Log | None,
) -> None:
    weights = gather(fabric, model.state_dict())
    averages = gather(fabric, average.tensors)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averages.items()}
    tensors |= gather(fabric, optimizer_tensors(optimizer))
    # What 16-mixed scales its gradients by; empty for other precisions.
    values = {"scaler": fabric.strategy.precision.state_dict()}
    with _together(fabric, f"save step {step}"):
        if log:
            values[MARK] = log.mark()
            task.export(averages or weights, step)
            folder = out / "checkpoints"
            save_checkpoint(folder, step, tensors, values, keep=config.keep_checkpoints)


@contextmanager
def _together(fabric: Fabric, what: str) -> Iterator[None]:
    """Lets all processes fail if the first one fails to do `what` in here."""
    done = False
    try:
        yield
        done = True
    finally:  # None may wait for a process that has left.
        done = fabric.broadcast(done)
    if not done:
        raise PipelineError(f"the first process could not {what}; it says why.")


def _restore(
    fabric: Fabric,
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    init: Path | None,
) -> tuple[int, Mapping[str, Any]]:
    """Puts back what the last checkpoint holds; returns its step, and its values if it is ours."""
    own = load_last(out / "checkpoints")
    checkpoint = own or (load_last(init) if init else None)
    if checkpoint is None:
        return 0, {}
    if own and MARK in own.values:
        vouched(out / FILE, own.values[MARK])  # In every process: none waits for one that refuses.
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in checkpoint.tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    wanted = model.state_dict()
    for tensors in (parts["model"], parts["average"]):
        for name in tensors.keys() & wanted.keys():
            tensors[name] = slice_like(tensors[name], wanted[name])
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{out}: its checkpoint does not fit the model: {problem}") from None
    state = {name: x for name, x in checkpoint.tensors.items() if name.startswith("optimizer.")}
    restore_optimizer(optimizer, slice_optimizer(optimizer, state))
    if scaler := checkpoint.values.get("scaler"):
        fabric.strategy.precision.load_state_dict(scaler)
    device = next(model.parameters()).device
    if average.decay:  # Another run's average, not followed any more, would be all that is saved.
        average.tensors = {name: tensor.to(device) for name, tensor in parts["average"].items()}
    return checkpoint.step, own.values if own else {}


@contextmanager
def _stop_requests() -> Iterator[Sequence[int]]:
    """Collects stop signals; the loop looks at them between two steps."""
    seen: list[int] = []
    old = {
        name: signal.signal(name, lambda number, _: seen.append(number)) for name in STOP_SIGNALS
    }
    try:
        yield seen
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
