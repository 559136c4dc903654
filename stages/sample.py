"""a trained model -> new tokens, in a token store of their own."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray

from mebt import (
    CachedPredictor,
    MeBTConfig,
    SampleConfig,
    load_model,
    model_metadata,
    sample_frames,
    weights_identity,
)
from mebt.linear import round_weights
from mebt.weights import MODEL_FILE
from pipeline.config import Precision, load_section
from pipeline.device import compiling, send
from pipeline.errors import CheckpointError, TokenStoreError, user_errors
from pipeline.precision import HALF, precision_of
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from pipeline.store.claims import claim_shards, fill_shards
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.window import Window
from pipeline.tuning import MEDIUM, keep_freed
from stages.given import Given, check_given, check_values, open_given
from stages.launch import Launch, fabric_options
from stages.options import FOLDER, PLACE, PLACE_OUT, overwrite_option, params_options

SPLIT = "sample"
SHARD_WINDOWS = 16
"""Samples that are written, and redone after a stop, together."""
SAMPLER = 2
"""Raised when the same values come to draw other samples: a store of samples never mixes two."""
NO_EFFECT = ("num_samples", "batch_size", "compile")
"""Values that no single sample depends on; compiled layers round otherwise, no more."""


@dataclass(frozen=True, kw_only=True)
class SampleStageConfig(SampleConfig):
    """How new token grids are drawn, and how the model computes what they are drawn from."""

    total_frames: int | None = None
    """Frames of a sample's video; null: as many as the model's window. Raised to whole latent
    frames, of usually 4; where the model does not know its frames, these are counted. A longer one
    is made by a window that slides, a shorter one is drawn as it is."""
    precision: Precision = "auto"
    """Of products and attention, logits included: 32-true, bf16-mixed, 16-mixed, or auto:
    bf16-mixed on GPUs and processors that multiply in it, else 32-true, and what the store was
    begun in. Each draws other samples of a seed."""
    compile: bool = False
    """Compile the layers with `torch.compile` when sampling begins; the same numbers to rounding.
    Needs a C++ compiler, and on a GPU Triton."""


@dataclass(frozen=True)
class Sampled:
    """What `sample` did."""

    total: int
    drawn: int
    """Samples drawn in this call."""
    calls: float
    """Passes through the model for each of those that this process drew; 0: it drew none."""
    fingerprint: str


def recorded_precision(out: Place) -> object:
    """Returns the precision that a store of samples goes on in; None if there is none yet."""
    try:
        settings = TokenStore(out, allow_partial=True).info.extra.get("sample")
    except TokenStoreError:  # What is wrong with it is said when it is to be gone on with.
        return None
    return settings.get("precision") if isinstance(settings, dict) else None


def sample(
    run: Path,
    out: Place,
    config: SampleStageConfig,
    *,
    fabric: Fabric,
    given: Given | None = None,
    overwrite: bool = False,
) -> Sampled:
    """Draws samples into a token store; goes on where an earlier call was cut off.

    Sample number i depends on the weights, the config, the seed, i and the window given for it:
    not on the batch size, nor on the number of processes. Raises PipelineError if there is no
    usable model in `run`, or if `out` holds something else.
    """
    config = replace(config, precision=precision_of(fabric))
    keep_freed(MEDIUM)
    path = run / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{path} is missing; train it with `mebt train --out {run}`.")
    with user_errors():
        metadata = model_metadata(path)
        model = load_model(path, str(fabric.device))
    window = Window.read(path, metadata)
    if (asked := config.total_frames) is not None:
        total, said = window.in_latent_frames(asked, model.config.grid[0])
        config = replace(config, total_frames=total)
        if said and fabric.is_global_zero:
            print(said, file=sys.stderr, flush=True)
    check_values(config, path, model.config, window)
    check_given(given, config, path, model.config, metadata.get("tokenizer") or None)
    info = _store_info(config, model.config, metadata, window, weights_identity(path), given)

    if config.precision in HALF:
        round_weights(model, HALF[config.precision])
    predict = CachedPredictor(model, compiled=config.compile)
    plan = numbered_plan(info.counts, SPLIT, SHARD_WINDOWS)
    with claim_shards(
        *(out, info, plan),
        fabric=fabric,
        batch_size=config.batch_size,
        what="sample",
        unit="sample",
        overwrite=overwrite,
    ) as share:
        draw = partial(_draw, predict, config, given, fabric)
        batches = fill_shards(share, draw, config.batch_size)
    calls = predict.calls / max(batches, 1)
    return Sampled(config.num_samples, share.total, calls, TokenStore(out).fingerprint)


def _draw(
    predict: CachedPredictor,
    config: SampleStageConfig,
    given: Given | None,
    fabric: Fabric,
    numbers: range,
) -> NDArray[np.int64]:
    """Draws samples of these numbers together, as tokens [B, t, h, w]."""
    predict.reset()
    with fabric.autocast(), compiling(config.compile, "sample.compile"):
        drawn = sample_frames(
            predict,
            predict.model.config.grid,
            config,
            numbers=numbers,
            given=None if given is None else send(given.windows(numbers), fabric.device),
            revise_only=given is not None and given.is_draft,
            device=fabric.device,
        )
    return drawn.cpu().numpy()


def _store_info(
    config: SampleStageConfig,
    model: MeBTConfig,
    metadata: Mapping[str, str],
    window: Window,
    identity: str,
    given: Given | None,
) -> StoreInfo:
    """Says what the samples are: everything that they depend on, and the size of their videos."""
    t, h, w = model.grid
    total = config.total_frames or t
    settings = {key: value for key, value in asdict(config).items() if key not in NO_EFFECT}
    return StoreInfo(
        tokenizer=metadata.get("tokenizer") or None,
        codebook_size=model.codebook_size,
        grid=(total, h, w),
        source=identity,
        counts={SPLIT: config.num_samples},
        shard_windows=SHARD_WINDOWS,
        chunk_windows=SHARD_WINDOWS,
        extra={
            "sample": settings,
            "sampler": SAMPLER,
            "model": identity,
            "step": metadata.get("step", ""),
            "given": given.recorded() if given else None,
        }
        | ({"causal": True} if window.causal else {}),
        frames=window.frames if total == t else window.frames_of(total, t),
        stride=window.stride,
        size=window.size,
        fps=window.fps,
    )


@click.command("sample")
@click.option("--run", type=FOLDER, required=True, help="Run whose model is sampled.")
@click.option("--out", type=PLACE_OUT, required=True, help="Token store to make or to go on with.")
@click.option("--given", "kept", type=PLACE, help="Token store whose frames sample.keep are kept.")
@click.option("--draft", type=PLACE, help="Token store of drafts: revise them, draw none.")
@click.option("--split", help="Split of --given or --draft; needed if there is more than one.")
@params_options
@fabric_options
@overwrite_option
def command(
    run: Path,
    out: Place,
    kept: Place | None,
    draft: Place | None,
    split: str | None,
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    overwrite: bool,
) -> None:
    """Draw new videos, as tokens.

    Draws whole windows, a share anew in each step, and writes them into a token store, which
    `mebt decode` turns into videos; says how many model calls a sample takes. Sample number i is
    the same whatever the batch size and the number of processes. Values: section `sample` of the
    params file.

    With --given, sample number i keeps the latent frames `sample.keep` of window i and fills in the
    others; with --draft, window i is a draft and only revised. `sample.total_frames` makes videos
    longer than the model's window; it counts frames of the video, and is raised to whole latent
    frames. `sample.keep` and `sample.context_frames` count latent frames.
    `sample.compile=true` is for speed, above all on GPUs.

    \b
    Example:
      mebt sample --run run --out samples/tokens --set sample.num_samples=64
      mebt sample --run run --given tokens --split test --set 'sample.keep=[0,1]' --out continued
      mebt sample --run run --out long --set sample.total_frames=32 --set sample.context_frames=2
      mebt sample --run run --draft samples/tokens --set sample.revise_rounds=4 --out revised
    """
    keep_apart(out, run, kept, draft, params)
    config = load_section(params, "sample", SampleStageConfig, overrides)
    if kept and draft:
        raise click.UsageError("give --given or --draft, not both.")
    tokens = kept or draft
    if split and not tokens:
        raise click.UsageError("--split is of --given or --draft.")
    given = open_given(tokens, split, config, is_draft=draft is not None) if tokens else None
    fabric = launch(launch.settle("sample.precision", config.precision, recorded_precision(out)))
    sampled = sample(run, out, config, fabric=fabric, given=given, overwrite=overwrite)
    if fabric.is_global_zero:
        calls = f", {sampled.calls:.0f} model calls each" if sampled.calls else ""
        done = f"{sampled.drawn} drawn now{calls}" if sampled.drawn else "nothing to do"
        click.echo(
            f"{out}: {sampled.total} samples; {done}, fingerprint {sampled.fingerprint[:12]}"
        )
