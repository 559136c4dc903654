"""What a run trains, and the values that every run has."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.config import Precision
from pipeline.training.previews import Previews

KEYS_THAT_MAY_CHANGE = (
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
    stable_share: float = 0.0
    """Share of the steps after `warmup_steps` at the highest learning rate, before `cosine` lets it
    fall in the rest."""
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
        counts = ("max_steps", "batch_size", "accumulate", "keep_checkpoints")
        for name in (*counts, "log_every", "validate_every", "checkpoint_every"):
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
        if not 0 <= self.stable_share < 1:
            raise ValueError(f"stable_share must be in [0, 1), got {self.stable_share}.")
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


def learning_rate(step: int, config: LoopConfig) -> float:
    """Warms up linearly, then stays, and may fall to zero along half a cosine.

    Staying before it falls: warm-up-stable-decay (Hu et al. 2024, arXiv 2404.06395, section 4).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = config.max_steps - config.warmup_steps
    stable = config.stable_share * left
    falls = step - config.warmup_steps - stable
    if not config.cosine or falls <= 0:
        return config.learning_rate
    return config.learning_rate / 2 * (1 + math.cos(math.pi * falls / (left - stable)))
