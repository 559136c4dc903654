"""frames -> a 3D VQGAN trained on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.config import as_dict, load_section
from pipeline.device import send
from pipeline.errors import CheckpointError, ConfigError, FrameError, user_errors
from pipeline.frame_list import source_of
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import describe_frames, scan_frames
from pipeline.precision import precision_of
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.seeds import step_seed
from pipeline.storage.files import keep_apart, replacing, sha256_file
from pipeline.storage.places import Place
from pipeline.training.checkpoint import last_step
from pipeline.training.folder import open_run, recorded
from pipeline.training.loop import run_loop
from pipeline.training.task import LoopConfig, Task
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows
from pipeline.windows.source import WindowSource
from pipeline.windows.verify import name_damaged, verify_frames
from stages.launch import Launch, fabric_options
from stages.options import (
    FILE,
    OUT,
    PLACE,
    as_stored_option,
    overwrite_option,
    params_options,
    verify_option,
)
from tokenizer import VQGAN, VQGANConfig, identity, load_tokenizer, save_tokenizer
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
from tokenizer.weights import as_half

RESULT = "tokenizer.safetensors"

BETAS, ADVERSARIAL_BETAS = (0.9, 0.95), (0.5, 0.9)
"""Adam's momenta; those against discriminators are the published ones."""

RESTART_DRAW, NOISE_DRAW = -1, -2
"""Beside the ranks 0, 1, … what a seed is drawn for; the noise of row i is NOISE_DRAW - i."""


@dataclass(frozen=True, kw_only=True)
class FitTokenizerConfig(ObjectiveConfig, LoopConfig):
    """How a 3D VQGAN is trained; with its defaults, for likeness of pixels only."""

    learning_rate: float = 3e-4
    """The highest: after `warmup_steps`, and before `cosine` lets it fall."""
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


@dataclass(frozen=True)
class Fitted:
    """What `fit_tokenizer` made."""

    path: Path
    steps: int
    identity: str
    notes: list[str]
    """What one might not expect of the frames."""


def _generator(config: FitTokenizerConfig, step: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(step_seed(config.seed, step, draw))


def _open_init(path: Path, shape: VQGANConfig) -> VQGAN:
    """Opens the tokenizer to begin from. Raises CheckpointError if section `tokenizer` differs."""
    with user_errors():
        model = load_tokenizer(path)
    theirs, ours = as_dict(model.config), as_dict(shape)
    if different := [key for key in ours if theirs[key] != ours[key]]:
        found, asked = (
            ", ".join(f"{key} {config[key]}" for key in different) for config in (theirs, ours)
        )
        raise CheckpointError(
            f"--init {path} has {found}, but section tokenizer asks for {asked}; make them agree."
        )
    return model


def _open_lpips(
    files: Sequence[Path], config: FitTokenizerConfig, size: int, device: str
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
    if size < SMALLEST:
        raise ConfigError(f"LPIPS needs frames of {SMALLEST} pixels, tokenize.size is {size}.")
    with user_errors():
        tensors = {str(file): state_tensors(file, load_content(file)) for file in files}
        return load_lpips(tensors, device)


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
    clean, frames = (send(x, fabric.device) for x in (video, frames[mine.start : mine.stop]))
    noisy = clean
    if config.noise:
        draws = (_generator(config, step, NOISE_DRAW - row) for row in mine)
        noisy = send(with_noise(video, draws, config.noise), fabric.device)
    chunks = (part.chunk(config.accumulate) for part in (noisy, clean, frames))
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
    weights: Mapping[str, Tensor],
    step: int,
) -> None:
    """Writes the trained tokenizer, without the discriminators."""
    with torch.device("meta"):
        whole = VQGAN(shape)
    ours = {n.removeprefix("vqgan."): x for n, x in weights.items() if n.startswith("vqgan.")}
    whole.load_state_dict(ours, assign=True)
    with replacing(path) as temporary:
        save_tokenizer(
            temporary, whole, extra={"steps": str(step), "source": source}, half=config.half
        )


def fit_tokenizer(
    frames: Place,
    out: Path,
    shape: VQGANConfig,
    windows: TokenizeConfig,
    config: FitTokenizerConfig,
    *,
    fabric: Fabric,
    init: Path | None = None,
    lpips: Sequence[Path] = (),
    verify: bool = False,
    overwrite: bool = False,
) -> Fitted | None:
    """Trains a 3D VQGAN on random windows of the train split; resumes if `out` has checkpoints.

    It begins from the weights of the tokenizer `init`, or from random ones. `lpips` are files of
    published weights. `verify` decodes every frame first; of damaged ones only the first process
    speaks, for the others there is nothing to return. Raises PipelineError if what is given and
    what is in `out` do not fit together, or a frame is damaged.
    """
    config = replace(config, precision=precision_of(fabric))
    try:
        shape.grid(windows.frames, windows.size, windows.size)
    except ValueError as error:
        raise ConfigError(f"sections tokenizer and tokenize: {error}") from None
    found = scan_frames(frames)
    plan = plan_windows(found.videos, windows)
    reader = WindowReader(found.videos, windows, cache_bytes=int(config.cache_gb * 2**30))
    train = WindowSource(plan, "train", reader)
    held_out = WindowSource(plan, "test" if plan.num_windows("test") else "train", reader)
    if not len(train):
        raise ConfigError(f"{frames} has no window in its train split.")
    if verify and not verify_frames(found.videos, plan, windows, fabric):
        return None
    begin = None if init is None else _open_init(init, shape)
    perceptual = _open_lpips(lpips, config, windows.size, str(fabric.device))
    listed = list_frames(found.videos, frames)
    source = source_of(listed)
    made_from = {
        "tokenizer": shape.recorded(),
        "windows": {key: getattr(windows, key) for key in ("frames", "stride", "hop", "size")}
        | ({"as_stored": True} if windows.as_stored else {}),
        "source": source,
        "init": None if begin is None else identity(begin),
        "lpips": sorted(map(sha256_file, lpips)),
    }
    task = Task(
        name="fit-tokenizer",
        batches=lambda step: _batches(train, step, config, fabric),
        names=lambda step: train.names(_draw(train, step, config)[0]),
        loss=objective(config, perceptual, lambda step: _generator(config, step, RESTART_DRAW)),
        validate=lambda model: _validate(model, held_out, config),
        export=partial(_export, out / RESULT, shape, config, source),
        result=out / RESULT,
        rate_name="windows",
        rate_per_step=config.batch_size,
        measures=logged_names(config),
    )
    with open_run(fabric, out, config, made_from, frames=listed, overwrite=overwrite):
        try:
            if last_step(out / "checkpoints") < config.max_steps:
                for row in held_out.spread(config.validation_windows):
                    held_out.read([row])  # What is damaged shall not come up in mid-training.
            torch.manual_seed(config.seed)
            model = new_model(shape, config, None if begin is None else begin.state_dict())
            steps = run_loop(fabric, *_for_training(model, config, fabric), task, config, out)
        except FrameError:
            step = last_step(out / "checkpoints")
            if not name_damaged(found.videos, plan, windows, fabric, step=step):
                return None
            raise
    notes: list[str] = []
    if fabric.is_global_zero:
        notes = describe_frames(found.videos, as_stored=windows.as_stored)
    return Fitted(out / RESULT, steps, identity(load_tokenizer(out / RESULT)), notes)


def _for_training(
    model: AdversarialVQGAN, config: FitTokenizerConfig, fabric: Fabric
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns the model as processes share it, and its optimizer."""
    betas = ADVERSARIAL_BETAS if model.discriminators else BETAS
    # Processes on CPUs have no layer for it, and each normalises by its own batch.
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model, torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=betas)


@click.command("fit-tokenizer")
@click.option(
    "--frames", type=PLACE, required=True, help="Frame folder, or tars of frames in a bucket."
)
@click.option("--out", type=OUT, required=True, help="Folder of the run to make or to go on with.")
@click.option("--init", type=FILE, help="Tokenizer whose weights to begin from, .safetensors.")
@click.option(
    "--lpips",
    type=FILE,
    multiple=True,
    help="Published weights of LPIPS on VGG16; give it once for each file that they lie in.",
)
@as_stored_option("tokenize")
@params_options
@fabric_options
@verify_option
@overwrite_option
def command(
    frames: Place,
    out: Path,
    init: Path | None,
    lpips: tuple[Path, ...],
    as_stored: tuple[str, ...],
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    verify_frames: bool,
    overwrite: bool,
) -> None:
    """Train a 3D VQGAN on your own frames.

    Writes OUT/tokenizer.safetensors, and checkpoints to go on from after a stop. Values: sections
    `tokenizer` (its shape), `fit_tokenizer` (training) and `tokenize` (the window) of the params
    file. --init fine-tunes a tokenizer that there is; section `tokenizer` must be of its shape.
    Discriminators and LPIPS take part if their weights in `fit_tokenizer` are above 0. A signal
    stops it after the step at hand with exit code 75: run it again to go on. So does a damaged
    frame with exit code 1, by name: mend it, and the same command goes on.

    \b
    Example:
      mebt fit-tokenizer --frames frames --out tokenizer-run --set fit_tokenizer.max_steps=5000
    """
    keep_apart(out, frames, init, *lpips, params)
    shape = load_section(params, "tokenizer", VQGANConfig, overrides)
    windows = load_section(params, "tokenize", TokenizeConfig, (*overrides, *as_stored))
    config = load_section(params, "fit_tokenizer", FitTokenizerConfig, overrides)
    key = "fit_tokenizer.precision"
    fabric = launch(launch.settle(key, config.precision, recorded(out, "precision")))
    made = fit_tokenizer(
        frames,
        out,
        shape,
        windows,
        config,
        fabric=fabric,
        init=init,
        lpips=lpips,
        verify=verify_frames,
        overwrite=overwrite,
    )
    if made and fabric.is_global_zero:
        for note in made.notes:
            click.echo(note)
        done = f"{made.steps} steps" if made.steps else "nothing to do"
        click.echo(f"{made.path}: {done}, identity {made.identity[:12]}")
