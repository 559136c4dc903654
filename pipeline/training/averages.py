"""Means over steps: of the weights, which are saved, and of what is logged."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.training.task import Task

try:
    import resource
except ImportError:  # Windows has none.
    resource = None  # type: ignore[assignment]

AVERAGED = ("running_mean", "running_var")
"""Last part of the names of buffers that tell of what the weights compute, as batch norm's do."""


@dataclass
class WeightAverage:
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


class StepMeans:
    """Means over the steps since the last line of the log."""

    def __init__(self, task: Task) -> None:
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
            "memory_gb": round(peak_memory_gb(fabric.device), 3),
            "seconds_per_step": round(seconds / self.steps, 5),
        }
        self._reset()
        return found


def peak_memory_gb(device: torch.device) -> float:
    """Returns the most memory so far: of a GPU what torch held, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
