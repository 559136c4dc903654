"""tokens, samples, model, tokenizer, frames -> metrics.json: how good they are, how measured."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch

from mebt import load_model, weights_identity
from mebt.loss import held_out_loss
from pipeline.checkpoint import user_errors
from pipeline.config import load_section
from pipeline.errors import CheckpointError
from pipeline.evaluation import (
    Evaluation,
    Tokens,
    Videos,
    Windows,
    batches,
    check_tokenizer,
    choose_windows,
    measure_pictures,
    measure_tokens,
    skip_pictures,
    window_reader,
)
from pipeline.files import keep_apart, write_json
from pipeline.frames import scan_frames
from pipeline.token_store import TokenStore
from pipeline.training import step_seed
from pipeline.video import to_bytes, to_model
from stages.options import FILE, FOLDER, OUT, device_option, params_options
from tokenizer import VQGAN, identity, load_tokenizer

MODEL = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What samples and reconstructions are held against."""

    split: Literal["test", "train"] = "test"
    """Real videos to compare with."""
    num_videos: int = 64
    """Windows on each side of a comparison, if there are as many."""
    mask_ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """Shares of hidden tokens at which the model is measured."""
    batch_size: int = 8
    """Windows at once; changes speed and memory, and numbers by rounding only."""
    seed: int = 0
    """Draws the windows to compare with, and the masks."""

    def __post_init__(self) -> None:
        if self.num_videos < 2:
            raise ValueError(f"num_videos must be at least 2, got {self.num_videos}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if wrong := [ratio for ratio in self.mask_ratios if not 0 < ratio <= 1]:
            raise ValueError(f"mask_ratios must be in (0, 1], got {wrong[0]}.")
        if len(set(self.percents)) < len(self.mask_ratios):
            raise ValueError(f"mask_ratios must differ by a per cent, got {self.mask_ratios}.")

    @property
    def percents(self) -> list[int]:
        """Mask ratios as they stand in the names of numbers."""
        return [round(100 * ratio) for ratio in self.mask_ratios]


def evaluate(
    tokens: Path,
    config: EvaluateConfig,
    *,
    samples: Path | None = None,
    run: Path | None = None,
    tokenizer: Path | None = None,
    frames: Path | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Measures whatever of the artefacts is given; `not_computed` says what was not, and why.

    Raises PipelineError if two of them do not belong together.
    """
    store = TokenStore(tokens)
    drawn = None if samples is None else TokenStore(samples)
    windows = choose_windows(
        store, drawn, split=config.split, limit=config.num_videos, seed=config.seed
    )
    found = Evaluation()
    found.skip(("fvd", "kvd"), "needs the I3D network, which this version does not have")
    identities = {"tokens": store.fingerprint}
    if drawn is not None:
        identities["samples"] = drawn.fingerprint
    measure_tokens(found, windows)
    if run is None:
        keys = [f"token_{k}_mask_{p}" for k in ("loss", "accuracy") for p in config.percents]
        found.skip(keys, "no --run was given")
    else:
        _measure_model(found, run / MODEL, windows, config, device)
        identities["model"] = weights_identity(run / MODEL)
    if tokenizer is None or frames is None:
        skip_pictures(found, f"no {'--tokenizer' if tokenizer is None else '--frames'} was given")
    else:
        model = _open_tokenizer(tokenizer, store, device)
        identities["tokenizer"] = identity(model)
        reader = window_reader(scan_frames(frames).videos, frames, store)
        measure_pictures(
            found,
            windows,
            read=partial(reader.read, config.split),
            decode=partial(_decode, model),
            features=partial(_features, model),
            batch_size=config.batch_size,
        )
    found.protocol = {
        **windows.protocol(),
        "num_videos_asked": config.num_videos,
        "seed": config.seed,
        "mask_ratios": list(config.mask_ratios),
        "identities": identities,
    }
    return found


def _measure_model(
    found: Evaluation, path: Path, windows: Windows, config: EvaluateConfig, device: str
) -> None:
    """Measures how well held-out tokens are guessed at each mask ratio."""
    with user_errors():
        model = load_model(path, device)
    store = windows.store
    if (model.config.grid, model.config.codebook_size) != (store.grid, store.codebook_size):
        raise CheckpointError(
            f"{path} was trained on a grid {model.config.grid} of {model.config.codebook_size} "
            f"tokens, but {store.root} has {store.grid} of {store.codebook_size}."
        )
    tokens = torch.from_numpy(windows.held_out()).flatten(1)
    for ratio, percent in zip(config.mask_ratios, config.percents, strict=True):
        generator = torch.Generator().manual_seed(step_seed(config.seed, percent, 0))
        sums = np.zeros(2)
        for part in batches(len(tokens), config.batch_size, f"{percent}% hidden"):
            batch = tokens[part].to(device)
            means = held_out_loss(model, batch, mask_ratio=ratio, generator=generator)
            sums += np.asarray(means) * len(batch)
        loss, accuracy = sums / len(tokens)
        found.add({f"token_loss_mask_{percent}": loss, f"token_accuracy_mask_{percent}": accuracy})


def _open_tokenizer(path: Path, store: TokenStore, device: str) -> VQGAN:
    with user_errors():
        model = load_tokenizer(path, device)
    check_tokenizer(store, path, identity(model))
    return model


def _decode(tokenizer: VQGAN, tokens: Tokens) -> Videos:
    device = next(tokenizer.parameters()).device
    return to_bytes(tokenizer.decode(torch.from_numpy(tokens).to(device)))


@torch.no_grad()
def _features(tokenizer: VQGAN, videos: Videos) -> np.ndarray:
    device = next(tokenizer.parameters()).device
    return tokenizer.features(to_model(videos).to(device)).cpu().numpy()


@click.command("evaluate")
@click.option("--tokens", type=FOLDER, required=True, help="Token store of the real videos.")
@click.option("--samples", type=FOLDER, help="Token store of samples.")
@click.option("--run", type=FOLDER, help="Run whose model is measured on held-out tokens.")
@click.option("--tokenizer", type=FILE, help="Tokenizer that made the tokens, .safetensors.")
@click.option("--frames", type=FOLDER, help="Frame folder that the tokens were made from.")
@click.option("--out", type=OUT, required=True, help="JSON file to write.")
@params_options
@device_option
def command(
    tokens: Path,
    samples: Path | None,
    run: Path | None,
    tokenizer: Path | None,
    frames: Path | None,
    out: Path,
    params: Path,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Measure reconstructions, the model and its samples.

    Measures what it is given: with --tokenizer and --frames how close reconstructions come to
    their videos, with --run how well held-out tokens are guessed, with --samples how far new
    videos are from real ones, beside how far real ones are from one another. OUT holds the
    numbers, the protocol that made them, and what was not computed and why. Values: section
    `evaluate` of the params file.

    \b
    Example:
      mebt evaluate --tokens tokens --samples samples/tokens --run run \\
        --tokenizer models/fish-64.safetensors --frames frames --out metrics.json
    """
    keep_apart(out, tokens, samples, run, tokenizer, frames, params)
    config = load_section(params, "evaluate", EvaluateConfig, overrides)
    found = evaluate(
        tokens,
        config,
        samples=samples,
        run=run,
        tokenizer=tokenizer,
        frames=frames,
        device=device,
    )
    write_json(out, asdict(found))
    for key, value in found.metrics.items():
        click.echo(f"{key:32s} {value:.6g}")
    for why in dict.fromkeys(found.not_computed.values()):
        keys = [key for key, reason in found.not_computed.items() if reason == why]
        click.echo(f"not computed: {', '.join(keys)}: {why}")
    if (count := found.protocol["num_videos"]) < config.num_videos:
        click.echo(
            f"compared {count} videos on each side, not {config.num_videos}: there are no more"
        )
    click.echo(f"{out}: {len(found.metrics)} numbers")
