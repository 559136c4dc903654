"""frames -> a 3D VQGAN trained on them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import click
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.config import as_dict, load_section
from pipeline.device import send
from pipeline.errors import CheckpointError, ConfigError, FrameError
from pipeline.frame_list import source_of
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import describe_frames, scan_frames
from pipeline.precision import precision_of
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.seeds import step_seed
from pipeline.storage.files import keep_apart, replacing, sha256_file
from pipeline.storage.places import Place
from pipeline.training.checkpoint import last_step, user_errors
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
from tokenizer.adversarial import AXES, AdversarialVQGAN, Verdict
from tokenizer.losses import change_loss, drawn_frames, reconstruction_loss
from tokenizer.perceptual import HOW_TO_GET, LPIPS, SMALLEST, load_lpips
from tokenizer.weights import as_half

RESULT = "tokenizer.safetensors"

BETAS, ADVERSARIAL_BETAS = (0.9, 0.95), (0.5, 0.9)
"""Adam's momenta; those against discriminators are the published ones."""

RESTART_DRAW, NOISE_DRAW = -1, -2
"""Beside the ranks 0, 1, … what a seed is drawn for; the noise of row i is NOISE_DRAW - i."""


@dataclass(frozen=True, kw_only=True)
class FitTokenizerConfig(LoopConfig):
    """How a 3D VQGAN is trained; with its defaults, for likeness of pixels only."""

    learning_rate: float = 3e-4
    """The highest: after `warmup_steps`, and before `cosine` lets it fall."""
    l1_weight: float = 1.0
    """Weight of the mean absolute difference of pixels; the commitment loss has 1."""
    perceptual_weight: float = 0.0
    """Weight of the LPIPS of one frame of each clip, which needs --lpips."""
    image_gan_weight: float = 0.0
    """Weight of a discriminator that sees one frame of each clip; 0: there is none."""
    video_gan_weight: float = 0.0
    """Weight of a discriminator that sees whole clips; 0: there is none."""
    gan_feat_weight: float = 0.0
    """Weight of how far the discriminators see reconstructions from their videos."""
    gan_loss: Literal["hinge", "vanilla"] = "hinge"
    """What discriminators reduce; vanilla: the cross-entropy."""
    discriminator_start: int = 0
    """Steps before the discriminators begin to learn and to matter."""
    discriminator_width: int = 64
    """Channels of a discriminator's first layer."""
    motion_weight: float = 0.0
    """Weight of moving pixels as a whole beside all pixels evenly; 0: every pixel the same."""
    change_weight: float = 0.0
    """Weight of the mean absolute difference of changes from frame to frame: less flicker."""
    noise: float = 0.0
    """Noise added to what is encoded, while the clean video is to be decoded: tokens learn to
    ignore what a sensor adds, and are easier to predict. Each window draws its own standard
    deviation, in grey levels, from 0 to this."""
    restart_threshold: float = 0.1
    """Uses per step (moving average) below which a learned code is replaced; 0: never."""
    validation_windows: int = 32
    """Held-out windows measured at each validation."""
    half: bool = False
    """Store the result as float16."""
    cache_gb: float = 4.0
    """Memory for decoded frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = [field.name for field in fields(self) if field.name.endswith("_weight")]
        for name in (*weights, "noise", "restart_threshold", "cache_gb", "discriminator_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.validation_windows < 1:
            raise ValueError(f"validation_windows must be at least 1: {self.validation_windows}.")
        if not 1 <= self.discriminator_width <= 512:
            raise ValueError(f"discriminator_width must be 1 … 512: {self.discriminator_width}.")
        if self.gan_feat_weight and not any(self.gan_weights.values()):
            raise ValueError(
                f"gan_feat_weight is {self.gan_feat_weight}, but there is no discriminator; set "
                "image_gan_weight or video_gan_weight."
            )

    @property
    def gan_weights(self) -> dict[str, float]:
        """Weight of each kind of discriminator."""
        return {kind: getattr(self, f"{kind}_gan_weight") for kind in AXES}


@dataclass(frozen=True)
class Fitted:
    """What `fit_tokenizer` made."""

    path: Path
    steps: int
    identity: str
    notes: list[str]
    """What one might not expect of the frames."""


Batch = tuple[Tensor, Tensor, Tensor]
"""Clips with noise and without, as float32 [B, 3, T, H, W], and one frame number of each [B]."""
Objective = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]


def measures(config: FitTokenizerConfig) -> list[str]:
    """Names every number that is logged of the tokenizer, whichever of them a step measures."""
    kinds = [kind for kind, weight in config.gan_weights.items() if weight]
    return [
        *("l1", "commitment", "perplexity"),
        *(["change"] if config.change_weight else []),
        *(["lpips"] if config.perceptual_weight else []),
        *(f"{kind}_{name}" for kind in kinds for name in Verdict._fields),
        *("psnr", "psnr_mean_frame", "codebook_use"),
    ]


def measure(model: VQGAN, held_out: WindowSource, config: FitTokenizerConfig) -> dict[str, float]:
    """Measures reconstruction and codebook use on held-out windows, beside the mean frame."""
    device = next(model.parameters()).device
    squared, squared_mean_frame, l1 = 0.0, 0.0, 0.0
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    rows = held_out.spread(config.validation_windows)
    for row in rows:
        video = send(held_out.read([row]), device)
        tokens = model.encode(video)
        difference = model.decode(tokens).clamp(-0.5, 0.5) - video
        squared += float(difference.square().mean()) / len(rows)
        l1 += float(difference.abs().mean()) / len(rows)
        mean_frame = video.mean(2, keepdim=True) - video
        squared_mean_frame += float(mean_frame.square().mean()) / len(rows)
        counts += tokens.flatten().cpu().bincount(minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return {
        "psnr": -10 * math.log10(max(squared, 1e-10)),
        "psnr_mean_frame": -10 * math.log10(max(squared_mean_frame, 1e-10)),
        "l1": l1,
        "codebook_use": float((counts > 0).double().mean()),
        "perplexity": float(torch.exp(-(shares * shares.log()).sum())),
    }


def with_noise(
    video: Float[Tensor, "B 3 T H W"], rows: range, config: FitTokenizerConfig, step: int
) -> Float[Tensor, "B 3 T H W"]:
    """Adds to each clip the noise of its row of the step's batch."""
    noisy = video.clone()
    for clip, row in zip(noisy, rows, strict=True):
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, NOISE_DRAW - row))
        deviation = config.noise / 255 * torch.rand((), generator=generator)
        clip += deviation * torch.randn(clip.shape, generator=generator)
    return noisy


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


def new_model(
    shape: VQGANConfig, config: FitTokenizerConfig, init: VQGAN | None
) -> AdversarialVQGAN:
    """Makes a VQGAN with random weights or those of `init`, and new discriminators."""
    vqgan = VQGAN(shape)
    if init is not None:
        vqgan.load_state_dict(init.state_dict())
    kinds = [kind for kind, weight in config.gan_weights.items() if weight]
    return AdversarialVQGAN(vqgan, kinds, width=config.discriminator_width)


def objective(config: FitTokenizerConfig, lpips: LPIPS | None) -> Objective:
    """Makes the function that returns what a step is to reduce, and what to log of it."""

    def loss(
        module: nn.Module, batch: Batch, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        noisy, video, frames = batch
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, RESTART_DRAW))
        made, verdicts = module(
            noisy,
            video,
            frames,
            judging=step >= config.discriminator_start,
            kind=config.gan_loss,
            restart_threshold=config.restart_threshold,
            generator=generator,
        )
        reconstruction = made.reconstruction.float()
        l1 = reconstruction_loss(reconstruction, video, motion_weight=config.motion_weight)
        total = config.l1_weight * l1 + made.commitment_loss
        logged = {"l1": l1, "commitment": made.commitment_loss, "perplexity": made.perplexity}
        if config.change_weight:
            logged["change"] = change_loss(reconstruction, video)
            total = total + config.change_weight * logged["change"]
        if lpips is not None:
            pictures = (drawn_frames(clips, frames) for clips in (reconstruction, video))
            logged["lpips"] = lpips(*pictures).mean()
            total = total + config.perceptual_weight * logged["lpips"]
        for kind, verdict in verdicts.items():
            total = total + config.gan_weights[kind] * (verdict.fooled + verdict.told_apart)
            total = total + config.gan_feat_weight * verdict.matched
            logged |= {f"{kind}_{name}": value for name, value in verdict._asdict().items()}
        return total, {name: value.detach() for name, value in logged.items()}

    return loss


def _draw(train: WindowSource, step: int, config: FitTokenizerConfig) -> tuple[list[int], Tensor]:
    """Draws the windows of a step's batch, and the frame of each that discriminators see."""
    generator = torch.Generator().manual_seed(step_seed(config.seed, step, 0))
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
        noisy = send(with_noise(video, mine, config, step), fabric.device)
    chunks = (part.chunk(config.accumulate) for part in (noisy, clean, frames))
    return list(zip(*chunks, strict=True))


def _validate(
    model: nn.Module, held_out: WindowSource, config: FitTokenizerConfig
) -> dict[str, float]:
    assert isinstance(model, AdversarialVQGAN)
    return measure(as_half(model.vqgan) if config.half else model.vqgan, held_out, config)


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
    with open_run(fabric, out, config, made_from, frames=listed, overwrite=overwrite):
        try:
            if last_step(out / "checkpoints") < config.max_steps:
                for row in held_out.spread(config.validation_windows):
                    held_out.read([row])  # What is damaged shall not come up in mid-training.
        except FrameError:
            step = last_step(out / "checkpoints")
            if not name_damaged(found.videos, plan, windows, fabric, step=step):
                return None
            raise
        torch.manual_seed(config.seed)
        model = new_model(shape, config, begin)
        # Processes on CPUs have no layer for it, and each normalises by its own batch.
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=config.learning_rate,
            betas=ADVERSARIAL_BETAS if model.discriminators else BETAS,
        )
        task = Task(
            name="fit-tokenizer",
            batches=lambda step: _batches(train, step, config, fabric),
            names=lambda step: train.names(_draw(train, step, config)[0]),
            loss=objective(config, perceptual),
            validate=lambda model: _validate(model, held_out, config),
            export=partial(_export, out / RESULT, shape, config, source),
            result=out / RESULT,
            rate_name="windows",
            rate_per_step=config.batch_size,
            measures=measures(config),
        )
        try:
            steps = run_loop(fabric, model, optimizer, task, config, out)
        except FrameError:
            step = last_step(out / "checkpoints")
            if not name_damaged(found.videos, plan, windows, fabric, step=step):
                return None
            raise
    notes: list[str] = []
    if fabric.is_global_zero:
        notes = describe_frames(found.videos, as_stored=windows.as_stored)
    return Fitted(out / RESULT, steps, identity(load_tokenizer(out / RESULT)), notes)


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
