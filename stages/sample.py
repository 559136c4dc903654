"""a trained model -> new tokens, in a token store of their own."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
from lightning_fabric import Fabric

from mebt import (
    CachedPredictor,
    SampleConfig,
    Stream,
    weights_identity,
)
from mebt.linear import round_weights
from mebt.streaming import sizes_of
from pipeline.config import Precision, load_section
from pipeline.device import compiling, send
from pipeline.precision import HALF, precision_of
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from pipeline.store.claims import claim_shards
from pipeline.store.layout import LABEL, numbered_plan
from pipeline.store.pieces import fill_shards, remove_finished
from pipeline.store.reader import TokenStore
from pipeline.store.tables import with_texts
from pipeline.store.window import Window
from pipeline.tuning import MEDIUM, keep_freed
from stages.asked import Asked, AskedConditions, check_asked, open_asked
from stages.given import Given, check_given, check_values, open_given
from stages.launch import Launch, fabric_options
from stages.options import (
    FILE,
    FOLDER,
    PLACE,
    PLACE_OUT,
    frames_option,
    overwrite_option,
    params_options,
)
from stages.run_model import open_model
from stages.sample_store import SHARD_WINDOWS, SPLIT, recorded_precision, store_info


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


def sample(
    run: Path,
    out: Place,
    config: SampleStageConfig,
    *,
    fabric: Fabric,
    given: Given | None = None,
    asked: Asked | None = None,
    overwrite: bool = False,
) -> Sampled:
    """Draws samples into a token store; goes on where an earlier call was cut off.

    Sample number i depends on the weights, the config, the seed, i and what is given and asked for
    of it: not on the batch size, nor on the number of processes. Raises PipelineError if there is
    no usable model in `run`, or if `out` holds something else.
    """
    config = replace(config, precision=precision_of(fabric))
    keep_freed(MEDIUM)
    path, metadata, model = open_model(run, str(fabric.device))
    window = Window.read(path, metadata)
    if (frames := config.total_frames) is not None:
        total, about = window.in_latent_frames(frames, model.config.grid[0])
        config = replace(config, total_frames=total)
        if about and fabric.is_global_zero:
            print(about, file=sys.stderr, flush=True)
    check_values(config, path, model.config, window)
    check_given(given, config, path, model.config, metadata.get("tokenizer") or None)
    check_asked(config, asked)
    latents = config.total_frames or model.config.grid[0]
    conditions = (
        AskedConditions(asked, path, model.config, window, latents=latents) if asked else None
    )
    if conditions and fabric.is_global_zero:
        print(f"sample: {conditions.said(config.num_samples)}", file=sys.stderr, flush=True)
    identity = weights_identity(path)
    info = store_info(config, model.config, metadata, window, identity, given, asked)

    if config.precision in HALF:
        round_weights(model, HALF[config.precision])
    predict = CachedPredictor(model, compiled=config.compile)
    plan = numbered_plan(info.counts, SPLIT, SHARD_WINDOWS)
    plan = with_texts(plan, LABEL, asked.names(config.num_samples)) if asked else plan
    sizes = sizes_of(config, model.config.grid)
    each = window.frames_each(model.config.grid[0]) or 1
    is_long = len(sizes) > 1
    with claim_shards(
        *(out, info, plan),
        fabric=fabric,
        batch_size=config.batch_size,
        what="sample",
        unit="frame" if is_long else "sample",
        overwrite=overwrite,
        steps=[each * size for size in sizes] if is_long else [1],
    ) as share:
        if fabric.is_global_zero:
            remove_finished(share.writer.store)
        begin = partial(_begin, predict, config, given, conditions, fabric)
        with fabric.autocast(), compiling(config.compile, "sample.compile"):
            batches = fill_shards(share, begin, config.batch_size, fabric.device.type)
    calls = predict.calls / max(batches, 1)
    return Sampled(config.num_samples, share.total, calls, TokenStore(out).fingerprint)


def _begin(
    predict: CachedPredictor,
    config: SampleStageConfig,
    given: Given | None,
    asked: AskedConditions | None,
    fabric: Fabric,
    numbers: range,
) -> Stream:
    """Begins samples of these numbers, to be drawn together."""
    predict.reset()
    conditions = None
    if asked is not None:
        conditions = asked.of(numbers).changed(lambda x: send(x, fabric.device))
    return Stream(
        *(predict, predict.model.config.grid, config),
        numbers=numbers,
        given=None if given is None else send(given.windows(numbers), fabric.device),
        revise_only=given is not None and given.is_draft,
        conditions=conditions,
        device=fabric.device,
    )


@click.command("sample")
@click.option("--run", type=FOLDER, required=True, help="Run whose model is sampled.")
@click.option("--out", type=PLACE_OUT, required=True, help="Token store to make or to go on with.")
@click.option("--given", "kept", type=PLACE, help="Token store whose frames sample.keep are kept.")
@click.option("--draft", type=PLACE, help="Token store of drafts: revise them, draw none.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Draw this, a label that the model knows; several are dealt out in turn.",
)
@click.option(
    "--states",
    type=FILE,
    help="Draw what these numbers of each frame lead to, such as actions: a .csv or .parquet.",
)
@click.option(
    "--conditions-of", "like", type=PLACE, help="Token store: draw what is known of its windows."
)
@click.option("--split", help="Split of such a token store; needed if it has more than one.")
@frames_option
@params_options
@fabric_options
@overwrite_option
def command(
    run: Path,
    out: Place,
    kept: Place | None,
    draft: Place | None,
    labels: tuple[str, ...],
    states: Path | None,
    like: Place | None,
    split: str | None,
    frames: tuple[str, ...],
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
    longer than the model's window, in constant memory; it counts frames of the video, and is raised
    to whole latent frames. `sample.keep`, `sample.context_frames` and `sample.redraw_frames` count
    latent frames. `sample.compile=true` is for speed, above all on GPUs.

    A model that was trained with `model.conditions` draws what --label and --states say, which has
    columns `frame` and one for each name, and if it has a column `video`, deals those out in turn.
    `sample.guidance` makes samples follow that more closely; with none of it they are drawn freely.

    \b
    Example:
      mebt sample --run run --out samples/tokens --set sample.num_samples=64
      mebt sample --run run --given tokens --split test --set 'sample.keep=[0,1]' --out continued
      mebt sample --run run --out long --frames 10000 --set sample.context_frames=2
      mebt sample --run run --label surfing --set sample.guidance=2 --out surfing
      mebt sample --run run --states actions.csv --out moved
      mebt sample --run run --draft samples/tokens --set sample.revise_rounds=4 --out revised
    """
    keep_apart(out, run, kept, draft, states, like, params)
    config = load_section(params, "sample", SampleStageConfig, (*frames, *overrides))
    if kept and draft:
        raise click.UsageError("give --given or --draft, not both.")
    tokens = kept or draft
    if like and (labels or states):
        raise click.UsageError("give --conditions-of, or --label and --states, not both.")
    if split and not (tokens or like):
        raise click.UsageError("--split is of --given, --draft or --conditions-of.")
    asked = open_asked(labels, states, like, split)
    given = open_given(tokens, split, config, is_draft=draft is not None) if tokens else None
    fabric = launch(launch.settle("sample.precision", config.precision, recorded_precision(out)))
    sampled = sample(run, out, config, fabric=fabric, given=given, asked=asked, overwrite=overwrite)
    if fabric.is_global_zero:
        calls = f", {sampled.calls:.0f} model calls each" if sampled.calls else ""
        done = f"{sampled.drawn} drawn now{calls}" if sampled.drawn else "nothing to do"
        click.echo(
            f"{out}: {sampled.total} samples; {done}, fingerprint {sampled.fingerprint[:12]}"
        )
