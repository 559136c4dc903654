"""What a benchmark is made of: a setting, work prepared in it, and a row of the table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mebt import MeBT, MeBTConfig
from mebt.linear import round_weights
from pipeline.tuning import MEDIUM, SMALL, keep_freed
from tokenizer import VQGAN, VQGANConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where work is done, and how large: the published sizes, or small ones for tests."""

    device: torch.device
    folder: Path
    """For files that the work needs; empty at first, and deleted afterwards."""
    small: bool = False
    half: bool = False
    """Products and attention in bfloat16, as with the precision bf16-mixed."""

    def autocast(self) -> torch.autocast:
        """Returns the context in which the models' forward passes run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    @property
    def side(self) -> int:
        """Pixels along each side of a frame."""
        return 16 if self.small else 128

    def model_config(self, frames: int, width: int = 1024) -> MeBTConfig:
        """Returns the published model for so many frames, or a small one for as many."""
        if self.small:
            fields = {"width": 8, "num_heads": 2, "num_latents": 5, "codebook_size": 40}
            return MeBTConfig(**fields, block="published", grid=(frames // 4, 2, 2))
        fields = {"width": width, "num_heads": width // 64, "codebook_size": 16_384}
        return MeBTConfig(**fields, block="published", grid=(frames // 4, 16, 16))

    def model(
        self, frames: int, width: int = 1024, *, activation_checkpointing: bool = False
    ) -> MeBT:
        """Makes a model with random weights."""
        config = self.model_config(frames, width)
        if activation_checkpointing:
            keep_freed(SMALL)
        model = MeBT(config, activation_checkpointing=activation_checkpointing)
        return model.eval().to(self.device)

    def sampled_model(self, frames: int, width: int = 1024) -> MeBT:
        """Makes a model as `mebt sample` has it: in half precision with rounded weights."""
        keep_freed(MEDIUM)
        model = self.model(frames, width)
        if self.half:
            round_weights(model, torch.bfloat16)
        return model

    def tokenizer(self) -> VQGAN:
        """Makes a VQGAN with random weights."""
        if self.small:
            config = VQGANConfig(width=4, codebook_size=40, embedding_dim=4, norm="batch")
        else:
            config = VQGANConfig(norm="batch")
        return VQGAN(config).eval().to(self.device)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to run. Its limit is one of `operations`, `bytes` and `beside`."""

    run: Callable[[], object]
    operations: int = 0
    """Those of the published code; at the limit they take as long as in matrix products."""
    bytes: int = 0
    """Read or written; at the limit they take as long as in a copy."""
    beside: Callable[[], object] | None = None
    """Other work, whose time is the limit."""
    first: Callable[[], object] = lambda: None
    """Runs once, before it is noted how much memory there is without the work."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table."""

    name: str
    prepare: Callable[[Setting], Work] = field(repr=False)
    target: float | None = None
    """The largest factor wanted: time over the time at the limit."""
    extra_gb_target: float | None = None
    """The most memory wanted above what stood before, in 10^9 bytes."""
    in_seconds: bool = False
    """The target is a time in seconds, and so is what the row shows as its factor."""
