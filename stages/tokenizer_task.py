"""What a training run of a VQGAN is made of: its values, its batches, its loss, its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.config import as_dict
from pipeline.device import send
from pipeline.errors import CheckpointError, ConfigError, user_errors
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.seeds import step_seed
from pipeline.size import Size, sides
from pipeline.storage.files import replacing
from pipeline.training.task import LoopConfig, Task
from pipeline.windows.plan import TokenizeConfig
from pipeline.windows.source import WindowSource
from tokenizer import VQGAN, VQGANConfig, load_tokenizer, save_tokenizer, tokens_identity
from tokenizer.adversarial import AdversarialVQGAN
from tokenizer.objective import (
    Batch,
    ObjectiveConfig,
    logged_names,
    measure_reconstruction,
    new_model,
    objective,
    with_noise,
)
from tokenizer.perceptual import HOW_TO_GET, LPIPS, SMALLEST, load_lpips
from tokenizer.vqgan import BEFORE_TOKENS
from tokenizer.weights import as_half

BETAS, ADVERSARIAL_BETAS = (0.9, 0.95), (0.5, 0.9)
"""Adam's momenta; those against discriminators are the published ones."""

RESTART_DRAW, NOISE_DRAW = -1, -2
"""Seeds for other draws than a rank's own, 0, 1, …; the noise of row i is NOISE_DRAW - i."""


@dataclass(frozen=True, kw_only=True)
class FitTokenizerConfig(ObjectiveConfig, LoopConfig):
    """How a 3D VQGAN is trained; with its defaults, for likeness of pixels only."""

    learning_rate: float = 3e-4
    """The highest: after `warmup_steps`, and before `cosine` lets it fall."""
    frames: int | None = None
    """Frames of the windows that it learns from; null: those of `tokenize.frames`. What it learns
    from short ones serves long ones, and a step takes less time and memory."""
    validation_windows: int = 32
    """Held-out windows measured at each validation."""
    half: bool = False
    """Store the result as float16."""
    cache_gb: float = 4.0
    """Memory for decoded frames."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        ObjectiveConfig.__post_init__(self)
        if self.cache_gb < 0:
            raise ValueError(f"cache_gb must not be negative, got {self.cache_gb}.")
        if self.validation_windows < 1:
            raise ValueError(f"validation_windows must be at least 1: {self.validation_windows}.")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames must be at least 1, or null, got {self.frames}.")

    def windows(self, tokenized: TokenizeConfig) -> TokenizeConfig:
        """Returns the windows to learn from, where those are tokenized."""
        return replace(tokenized, frames=self.frames or tokenized.frames)


def tokenizer_task(
    train: WindowSource,
    held_out: WindowSource,
    shape: VQGANConfig,
    config: FitTokenizerConfig,
    fabric: Fabric,
    lpips: LPIPS | None,
    result: Path,
    source: str,
    tokens_of: str | None,
) -> Task:
    """Makes what the loop trains: a VQGAN on windows of frames, whose hash is `source`.

    `tokens_of` is the identity of the tokenizer whose tokens it is to keep.
    """
    return Task(
        name="fit-tokenizer",
        batches=lambda step: _batches(train, step, config, fabric),
        names=lambda step: train.names(_draw(train, step, config)[0]),
        loss=objective(
            config, lpips, lambda step: _generator(config, step, RESTART_DRAW), shape.pixel_limits
        ),
        validate=lambda model: _validate(model, held_out, config),
        export=partial(_export, result, shape, config, source, tokens_of),
        result=result,
        rate_name="windows",
        rate_per_step=config.batch_size,
        measures=logged_names(config),
    )


def _draw(train: WindowSource, step: int, config: FitTokenizerConfig) -> tuple[list[int], Tensor]:
    """Draws the windows of a step's batch, and the frame of each that discriminators see."""
    generator = _generator(config, step, 0)
    rows = train.draw(config.batch_size, generator=generator)
    return rows, torch.randint(train.reader.config.frames, (len(rows),), generator=generator)


def _batches(
    train: WindowSource, step: int, config: FitTokenizerConfig, fabric: Fabric
) -> list[Batch]:
    """Returns this process's part of a step's batch, in micro-batches."""
    rows, frames = _draw(train, step, config)
    share = config.batch_size // fabric.world_size
    mine = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    video = train.read(rows[mine.start : mine.stop])
    draws = (_generator(config, step, NOISE_DRAW - row) for row in mine)
    noisy = with_noise(video, draws, config.noise)
    parts = (send(x, fabric.device) for x in (noisy, video, frames[mine.start : mine.stop]))
    chunks = (part.chunk(config.accumulate) for part in parts)
    return list(zip(*chunks, strict=True))


def _validate(
    model: nn.Module, held_out: WindowSource, config: FitTokenizerConfig
) -> dict[str, float]:
    assert isinstance(model, AdversarialVQGAN)
    device = next(model.parameters()).device
    rows = held_out.spread(config.validation_windows)
    return measure_reconstruction(
        as_half(model.vqgan) if config.half else model.vqgan,
        (send(held_out.read([row]), device) for row in rows),
    )


def _export(
    path: Path,
    shape: VQGANConfig,
    config: FitTokenizerConfig,
    source: str,
    tokens_of: str | None,
    weights: Mapping[str, Tensor],
    step: int,
) -> None:
    """Writes the trained tokenizer, without the discriminators."""
    with torch.device("meta"):
        whole = VQGAN(shape)
    ours = {n.removeprefix("vqgan."): x for n, x in weights.items() if n.startswith("vqgan.")}
    whole.load_state_dict(ours, assign=True)
    whole.tokens_of = tokens_of
    with replacing(path) as temporary:
        save_tokenizer(
            temporary, whole, extra={"steps": str(step), "source": source}, half=config.half
        )


def _generator(config: FitTokenizerConfig, step: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(step_seed(config.seed, step, draw))


def open_init(path: Path, shape: VQGANConfig) -> VQGAN:
    """Opens the tokenizer to begin from. Raises CheckpointError if section `tokenizer` differs."""
    with user_errors():
        model = load_tokenizer(path)
    if not isinstance(model, VQGAN):
        raise CheckpointError(
            f"--init {path} is {model.config.what[0].lower()}{model.config.what[1:]}, which can "
            "encode and decode, but not be trained here; give one of `mebt fit-tokenizer`."
        )
    theirs, ours = as_dict(model.config), as_dict(shape)
    # No weight's shape depends on the range.
    if different := [key for key in ours if theirs[key] != ours[key] and key != "pixel_range"]:
        found, asked = (
            ", ".join(f"{key} {config[key]}" for key in different) for config in (theirs, ours)
        )
        raise CheckpointError(
            f"--init {path} has {found}, but section tokenizer asks for {asked}; make them agree."
        )
    return model


def kept_tokens(config: FitTokenizerConfig, begin: VQGAN | None) -> str | None:
    """Returns the identity of the tokenizer whose tokens are kept, if the decoder alone is trained.

    Raises ConfigError if there is none, or if its tokens would not be the same after rounding.
    """
    if not config.decoder_only:
        return None
    if begin is None:
        raise ConfigError(
            "fit_tokenizer.decoder_only trains the decoder of a tokenizer that there is: give it "
            "as --init."
        )
    if config.half:
        rounded = as_half(begin)
        for name in BEFORE_TOKENS:
            kept, stored = (m.get_submodule(name).state_dict() for m in (begin, rounded))
            if not all(torch.equal(kept[key], stored[key]) for key in kept):
                raise ConfigError(
                    "fit_tokenizer.half would round the encoder too, and tokens would change: set "
                    "it to false, or fit_tokenizer.decoder_only."
                )
    return tokens_identity(begin)


def open_lpips(
    files: Sequence[Path], config: FitTokenizerConfig, size: Size, device: str
) -> LPIPS | None:
    """Opens LPIPS if it is used. Raises PipelineError if weight, files and frames do not agree."""
    if not config.perceptual_weight:
        if files:
            raise ConfigError("--lpips is of no use while fit_tokenizer.perceptual_weight is 0.")
        return None
    if not files:
        raise ConfigError(
            f"fit_tokenizer.perceptual_weight is {config.perceptual_weight}, which needs --lpips: "
            f"{HOW_TO_GET}."
        )
    if min(sides(size)) < SMALLEST:
        raise ConfigError(f"LPIPS needs frames of {SMALLEST} pixels, tokenize.size is {size}.")
    with user_errors():
        tensors = {str(file): state_tensors(file, load_content(file)) for file in files}
        return load_lpips(tensors, device)


def first_model(
    shape: VQGANConfig, config: FitTokenizerConfig, fabric: Fabric, begin: VQGAN | None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Makes the model as it is before its first step, as processes share it, and its optimizer."""
    torch.manual_seed(config.seed)
    model = new_model(shape, config, None if begin is None else begin.state_dict())
    betas = ADVERSARIAL_BETAS if model.discriminators else BETAS
    # Processes on CPUs have no layer for it, and each normalises by its own batch.
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model, torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=betas)
