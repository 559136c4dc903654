"""A few steps of tokenizing and training, timed on this device, on random pictures and tokens."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from mebt import MeBTConfig
from mebt.objective import HELD_OUT_RATIOS
from pipeline.device import compiling
from pipeline.size import sides
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store
from pipeline.training.averages import peak_memory_gb
from pipeline.training.loop import run_loop
from pipeline.training.previews import is_due
from pipeline.training.task import LoopConfig, Task
from pipeline.windows.encode import BackoffEncoder, Encode
from pipeline.windows.plan import TokenizeConfig
from stages.launch import Launch
from stages.mebt_task import TrainConfig, mebt_task, new_model
from stages.options import spare_cores
from stages.previews import PREVIEW_PASSES
from stages.tokenizer_task import FitTokenizerConfig, first_model
from tokenizer import VQGANConfig
from tokenizer.objective import logged_names, objective

WARM_UP, LEAST, MOST = 2, 4, 12
"""Steps before the clock runs, and how many are timed."""
LONG = 20.0
"""Seconds after which no more than the least is timed."""
NEVER = 1 << 30
FORWARD = 3
"""Passes of a model that take as long as a step on them."""


@dataclass(frozen=True)
class Timed:
    """How long one step takes, and the memory that steps took."""

    seconds: float
    """Median of the timed ones."""
    memory_gb: float
    """Peak: of a GPU's memory for these steps, else of this process so far."""


@dataclass
class Trials:
    """What was timed, and what that makes of whole commands."""

    kind: str
    """Device: cpu, cuda or mps."""
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Command -> seconds, how they were found, and memory in GB where steps were timed."""
    caches: dict[str, float] = field(default_factory=dict)
    """What memory is for besides -> GB."""
    not_measured: list[str] = field(default_factory=list)

    def extracting(self, seconds: float, num_frames: int) -> None:
        """Takes note of how long `extract` takes, from the seconds of one frame of a clip."""
        how = "from a few short videos, decoded and saved"
        self.costs["extract"] = {"seconds": seconds * num_frames, "how": how}

    def fitting(
        self,
        shape: VQGANConfig,
        config: FitTokenizerConfig,
        windows: TokenizeConfig,
        num_frames: int,
    ) -> None:
        """Times the training of a tokenizer, on so many frames."""
        if config.perceptual_weight:
            self.not_measured.append("fit-tokenizer: its perceptual_weight needs weights of LPIPS")
            return
        fabric = self._fabric("fit_tokenizer.precision", config)
        timed = _time_fitting(shape, config, config.windows(windows), fabric)
        seconds = timed.seconds * config.max_steps
        validated = _validations(config) * config.validation_windows / config.batch_size
        seconds += validated * timed.seconds / FORWARD
        self._add("fit-tokenizer", seconds, timed, f"{config.max_steps:,} steps")
        frames_gb = num_frames * 3 * math.prod(sides(windows.size)) / 2**30
        self.caches["decoded frames (fit_tokenizer.cache_gb)"] = min(config.cache_gb, frames_gb)

    def tokenizing(
        self,
        encode: Encode,
        windows: TokenizeConfig,
        num_windows: int,
        num_frames: int,
        seconds_per_frame: float | None,
    ) -> None:
        """Times encoding; frames are read beside it on a GPU, on a CPU by the same cores."""
        timed = _time_encoding(encode, windows, torch.device(self.kind))
        seconds, reading = timed.seconds * num_windows, (seconds_per_frame or 0) * num_frames
        how = f"{num_windows:,} windows, "
        how += "without reading frames" if seconds_per_frame is None else "reading included"
        total = seconds + reading
        if workers := spare_cores(self.kind):
            total = max(seconds, reading / workers)
        self._add("tokenize", total, timed, how)

    def training(self, shape: MeBTConfig, config: TrainConfig, tokens_gb: float) -> None:
        """Times the training of MeBT, with validations and previews as of so many steps."""
        timed = _time_training(shape, config, self._fabric("train.precision", config))
        size = max(1, config.batch_size // config.accumulate)
        passes = len(HELD_OUT_RATIOS) * -(-config.validation_windows // size)
        validations = _validations(config)
        steps = config.max_steps + validations * passes / config.accumulate / FORWARD
        previews = sum(
            is_due(step, every=config.preview_every, first=0, last=config.max_steps)
            for step in range(config.max_steps + 1)
        )
        steps += previews * PREVIEW_PASSES / config.batch_size / FORWARD
        self._add("train", timed.seconds * steps, timed, f"{config.max_steps:,} steps")
        self.caches["tokens (train.memory_gb)"] = min(config.memory_gb, tokens_gb)

    def _add(self, command: str, seconds: float, timed: Timed, how: str) -> None:
        cost = {"seconds": seconds, "how": how, "seconds_per_step": timed.seconds}
        self.costs[command] = {**cost, "memory_gb": timed.memory_gb}

    def _fabric(self, key: str, config: LoopConfig) -> Fabric:
        launch = Launch(self.kind, {"devices": "1", "num_nodes": 1, "strategy": "auto"})
        return launch(launch.settle(key, config.precision, None))


def _validations(config: LoopConfig) -> int:
    """Counts the validations of a run: every so many steps, and after the last."""
    return -(-config.max_steps // config.validate_every)


class _EnoughError(Exception):
    """The trial is over."""


def _time_training(shape: MeBTConfig, config: TrainConfig, fabric: Fabric) -> Timed:
    """Trains MeBT for a few steps on random tokens, as `mebt train` does; nothing is kept."""
    config = replace(config, preview_every=0)
    count = 2 * config.batch_size
    info = StoreInfo(
        tokenizer=None,
        codebook_size=shape.codebook_size,
        grid=shape.grid,
        source="drawn at random",
        counts={"train": count},
        shard_windows=count,
        chunk_windows=count,
    )
    draw = np.random.default_rng(0)
    tokens = draw.integers(shape.codebook_size, size=(count, *shape.grid), dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        writer = create_store(Path(folder) / "tokens", info, numbered_plan(info.counts, "w", count))
        writer.write_shard("train", 0, tokens)
        store = TokenStore(Path(folder) / "tokens")
        task = mebt_task(store, shape, config, fabric, Path(folder) / "model.safetensors")
        with compiling(config.compile, "train.compile"):
            return _timed(
                task, *new_model(shape, config, fabric, None), config, fabric, Path(folder) / "run"
            )


def _time_fitting(
    shape: VQGANConfig, config: FitTokenizerConfig, windows: TokenizeConfig, fabric: Fabric
) -> Timed:
    """Trains a tokenizer for a few steps on random pictures; reading frames is left out."""
    config = replace(config, discriminator_start=0)  # Most steps are with them, if there are any.
    size = (config.batch_size, 3, windows.frames, *sides(windows.size))
    video = torch.rand(size, generator=torch.Generator().manual_seed(0)) - 0.5
    frames = torch.zeros(config.batch_size, dtype=torch.int64)
    parts = [x.to(fabric.device).chunk(config.accumulate) for x in (video, video, frames)]
    task = Task(
        name="fit-tokenizer",
        batches=lambda step: list(zip(*parts, strict=True)),
        names=lambda step: [],
        loss=objective(
            config, None, lambda step: torch.Generator().manual_seed(step), shape.pixel_limits
        ),
        validate=lambda model: {},
        export=lambda weights, step: None,
        result=Path(),
        rate_name="windows",
        rate_per_step=config.batch_size,
        measures=logged_names(config),
    )
    with tempfile.TemporaryDirectory() as folder:
        return _timed(task, *first_model(shape, config, fabric, None), config, fabric, Path(folder))


def _timed(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    fabric: Fabric,
    out: Path,
) -> Timed:
    starts: list[float] = []

    def batches(step: int) -> Sequence[Any]:
        _settle(fabric.device)
        starts.append(time.perf_counter())
        timed = step - WARM_UP
        if timed >= LEAST and (timed >= MOST or starts[-1] - starts[WARM_UP] > LONG):
            raise _EnoughError
        return task.batches(step)

    config = replace(
        config,
        max_steps=WARM_UP + MOST + 1,
        log_every=NEVER,
        validate_every=NEVER,
        checkpoint_every=NEVER,
    )
    _forget_peak(fabric.device)
    try:
        trial = replace(task, name=f"time {task.name}", batches=batches)
        run_loop(fabric, model, optimizer, trial, config, out)
    except _EnoughError:
        pass
    seconds = np.diff(starts[WARM_UP:])
    return Timed(median(seconds.tolist()), peak_memory_gb(fabric.device))


def _time_encoding(encode: Encode, config: TokenizeConfig, device: torch.device) -> Timed:
    """Encodes a few batches of random pictures; seconds are of one window."""
    draw = np.random.default_rng(0)
    size = (config.batch_size, config.frames, *sides(config.size), 3)
    pixels = draw.integers(256, size=size, dtype=np.uint8)
    fitting = BackoffEncoder(encode, config.batch_size)
    _forget_peak(device)
    seconds = [_clocked(lambda: fitting(pixels)) for _ in range(1 + LEAST)][1:]
    return Timed(median(seconds) / config.batch_size, peak_memory_gb(device))


def _clocked(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
