"""frames -> a 3D VQGAN trained on them."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.config import as_dict, load_section
from pipeline.errors import ConfigError
from pipeline.files import keep_apart, lock, replacing
from pipeline.frames import scan_frames, source_fingerprint
from pipeline.training import LoopConfig, Task, prepare_run, run_loop, step_seed
from pipeline.video import to_model
from pipeline.windows import Plan, TokenizeConfig, WindowReader, plan_windows
from stages.options import (
    FOLDER,
    OUT,
    Launch,
    fabric_options,
    overwrite_option,
    params_options,
)
from tokenizer import VQGAN, VQGANConfig, identity, load_tokenizer, save_tokenizer
from tokenizer.losses import reconstruction_loss

RESULT = "tokenizer.safetensors"


RESTART_DRAW, NOISE_DRAW = -1, -2
"""Beside the ranks 0, 1, … what a seed is drawn for; the noise of rank r is NOISE_DRAW - r."""


@dataclass(frozen=True, kw_only=True)
class FitTokenizerConfig(LoopConfig):
    """How a 3D VQGAN is trained, without the adversarial part."""

    learning_rate: float = 3e-4
    motion_weight: float = 0.0
    """Weight of moving pixels as a whole beside all pixels evenly; 0: every pixel the same."""
    noise: float = 0.0
    """Noise added to what is encoded, while the clean video is to be decoded: tokens learn to
    ignore what a sensor adds, and are easier to predict. Each window draws its own standard
    deviation, in grey levels, from 0 to this."""
    restart_threshold: float = 0.1
    """Uses per step (moving average) below which a code is replaced; 0: never."""
    validation_windows: int = 32
    """Held-out windows measured at each validation."""
    half: bool = False
    """Store the result as float16."""
    cache_gb: float = 4.0
    """Memory for decoded frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("motion_weight", "noise", "restart_threshold", "cache_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.validation_windows < 1:
            raise ValueError(f"validation_windows must be at least 1: {self.validation_windows}.")


@dataclass(frozen=True)
class Fitted:
    """What `fit_tokenizer` made."""

    path: Path
    steps: int
    identity: str


class WindowSource:
    """Windows of one split, drawn at random or evenly spread."""

    def __init__(self, plan: Plan, split: str, reader: WindowReader) -> None:
        table = plan.table.filter(np.asarray(plan.table["split"]) == split)
        self.split = split
        self.videos = table["video"].combine_chunks().dictionary_encode()
        self.first = table["first_frame"].to_numpy()
        self.reader = reader

    def __len__(self) -> int:
        return len(self.first)

    def read(self, rows: list[int]) -> Tensor:
        """Returns the windows of these rows as float32 [B, 3, T, H, W]."""
        with ThreadPoolExecutor(4) as pool:
            windows = pool.map(
                lambda row: self.reader.read(
                    self.split, self.videos[row].as_py(), int(self.first[row])
                ),
                rows,
            )
            return to_model(np.stack(list(windows)))

    def draw(self, count: int, *, seed: int) -> list[int]:
        """Draws `count` rows."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self), (count,), generator=generator).tolist()

    def names(self, rows: list[int]) -> list[str]:
        """Returns what these rows are called: video and first frame."""
        return [f"{self.videos[row].as_py()} from frame {self.first[row]}" for row in rows]

    def spread(self, count: int) -> list[int]:
        """Picks up to `count` rows, evenly spread."""
        count = min(count, len(self))
        return [int(row) for row in np.linspace(0, len(self) - 1, count).round()]


def measure(model: VQGAN, held_out: WindowSource, config: FitTokenizerConfig) -> dict[str, float]:
    """Measures reconstruction and codebook use on held-out windows, beside the mean frame."""
    device = next(model.parameters()).device
    squared, squared_mean_frame, l1 = 0.0, 0.0, 0.0
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    rows = held_out.spread(config.validation_windows)
    for row in rows:
        video = held_out.read([row]).to(device)
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


def _with_noise(
    video: Tensor, config: FitTokenizerConfig, step: int, rank: int
) -> Float[Tensor, "B 3 T H W"]:
    if not config.noise:
        return video
    generator = torch.Generator().manual_seed(step_seed(config.seed, step, NOISE_DRAW - rank))
    deviation = config.noise / 255 * torch.rand(len(video), 1, 1, 1, 1, generator=generator)
    noise = deviation * torch.randn(video.shape, generator=generator)
    return video + noise.to(video.device)


def fit_tokenizer(
    frames: Path,
    out: Path,
    shape: VQGANConfig,
    windows: TokenizeConfig,
    config: FitTokenizerConfig,
    *,
    fabric: Fabric,
    overwrite: bool = False,
) -> Fitted:
    """Trains a 3D VQGAN on random windows of the train split; resumes if `out` has checkpoints."""
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
    made_from = {
        "tokenizer": as_dict(shape),
        "windows": {key: getattr(windows, key) for key in ("frames", "stride", "hop", "size")},
        "source": source_fingerprint(found.videos, frames),
    }
    with lock(out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            prepare_run(out, config, made_from, overwrite=overwrite)
        fabric.barrier()
        torch.manual_seed(config.seed)
        model = VQGAN(shape)
        if fabric.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = torch.optim.Adam(
            (p for p in model.parameters()), lr=config.learning_rate, betas=(0.9, 0.95)
        )
        local = config.batch_size // fabric.world_size

        def rows(step: int) -> list[int]:
            return train.draw(config.batch_size, seed=step_seed(config.seed, step, 0))

        def batches(step: int) -> list[Tensor]:
            mine = rows(step)[fabric.global_rank * local : (fabric.global_rank + 1) * local]
            return list(train.read(mine).to(fabric.device).chunk(config.accumulate))

        def loss(
            module: nn.Module, video: Tensor, step: int
        ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
            generator = torch.Generator().manual_seed(step_seed(config.seed, step, RESTART_DRAW))
            made = module(
                _with_noise(video, config, step, fabric.global_rank),
                restart_threshold=config.restart_threshold,
                generator=generator,
            )
            l1 = reconstruction_loss(
                made.reconstruction.float(), video, motion_weight=config.motion_weight
            )
            logged = {
                "l1": l1.detach(),
                "commitment": made.commitment_loss.detach(),
                "perplexity": made.perplexity,
            }
            return l1 + made.commitment_loss, logged

        def export(weights: Mapping[str, Tensor], step: int) -> None:
            with torch.device("meta"):
                whole = VQGAN(shape)
            whole.load_state_dict(weights, assign=True)
            extra = {"steps": str(step), "source": str(made_from["source"])}
            with replacing(out / RESULT) as temporary:
                save_tokenizer(temporary, whole, extra=extra, half=config.half)

        task = Task(
            name="fit-tokenizer",
            batches=batches,
            names=lambda step: train.names(rows(step)),
            loss=loss,
            validate=lambda model: measure(model, held_out, config),
            export=export,
            result=out / RESULT,
            rate_name="windows",
            rate_per_step=config.batch_size,
        )
        steps = run_loop(fabric, model, optimizer, task, config, out)
    return Fitted(out / RESULT, steps, identity(load_tokenizer(out / RESULT)))


@click.command("fit-tokenizer")
@click.option("--frames", type=FOLDER, required=True, help="Frame folder to train on.")
@click.option("--out", type=OUT, required=True, help="Folder of the run to make or to go on with.")
@params_options
@fabric_options
@overwrite_option
def command(
    frames: Path,
    out: Path,
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    overwrite: bool,
) -> None:
    """Train a 3D VQGAN on your own frames.

    Writes OUT/tokenizer.safetensors, and checkpoints to go on from after a stop. Values: sections
    `tokenizer` (its shape), `fit_tokenizer` (training) and `tokenize` (the window) of the params
    file. A signal stops it after the step at hand with exit code 75: run it again to go on.

    \b
    Example:
      mebt fit-tokenizer --frames frames --out tokenizer-run --set fit_tokenizer.max_steps=5000
    """
    keep_apart(out, frames, params)
    shape = load_section(params, "tokenizer", VQGANConfig, overrides)
    windows = load_section(params, "tokenize", TokenizeConfig, overrides)
    config = load_section(params, "fit_tokenizer", FitTokenizerConfig, overrides)
    fabric = launch(config.precision)
    made = fit_tokenizer(frames, out, shape, windows, config, fabric=fabric, overwrite=overwrite)
    if fabric.is_global_zero:
        done = f"{made.steps} steps" if made.steps else "nothing to do"
        click.echo(f"{made.path}: {done}, identity {made.identity[:12]}")
