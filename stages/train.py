"""tokens -> a MeBT trained on them."""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from lightning_fabric import Fabric

from mebt import MeBTConfig, MeBTShape, weights_identity
from mebt.weights import MODEL_FILE
from pipeline.config import as_dict, load_section
from pipeline.device import compiling
from pipeline.errors import ConfigError, TokenStoreError
from pipeline.precision import precision_of
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore
from pipeline.training.checkpoint import CHECKPOINTS, last_step
from pipeline.training.folder import open_run, recorded
from pipeline.training.log import Besides
from pipeline.training.loop import run_loop
from pipeline.training.previews import Previews, read_previews
from pipeline.training.profiling import RECORDED, TABLE, TRACE, WARM_UP
from stages.conditions import known_conditions, without_conditions
from stages.launch import Launch, sharding_options
from stages.mebt_task import TrainConfig, beginning, mebt_task, new_model
from stages.options import FILE, OUT, PLACE, log_options, overwrite_option, params_options
from stages.previews import decoder, draw

PROFILE = "profile"


@dataclass(frozen=True)
class Trained:
    """What `train` made."""

    path: Path
    steps: int
    """Steps done in this call."""
    parameters: int
    identity: str
    preview_share: float
    """Share of the time of this call's steps that previews took."""


def train(
    tokens: Place,
    out: Path,
    shape: MeBTShape,
    config: TrainConfig,
    *,
    fabric: Fabric,
    init: Path | None = None,
    tokenizer: Path | None = None,
    profile: bool = False,
    besides: Besides | None = None,
    overwrite: bool = False,
) -> Trained:
    """Trains MeBT on the train split of a token store; resumes if `out` has checkpoints.

    A new run begins with `init`: with the weights, the optimizer's state and the step of a run's
    folder, or with the weights of a model file, at step 0. `tokenizer` decodes previews, and
    `profile` records where the time of a few steps goes. Raises PipelineError if the store is
    damaged, or not the one that `out` was begun with, or if `init` or `tokenizer` does not fit.
    """
    config = replace(config, precision=precision_of(fabric))
    store = _open_tokens(tokens)
    model_config, said = _model_config(shape, store)
    if said and fabric.is_global_zero:
        print(f"train: conditioned on {said}", file=sys.stderr, flush=True)
    made_from = _made_from(model_config, store)
    if init:
        made_from["init"] = beginning(init, model_config, store, config)
    show = decoder(tokenizer, store, fabric.device) if tokenizer else None
    task = mebt_task(store, model_config, config, fabric, out / MODEL_FILE)
    with open_run(fabric, out, config, made_from, overwrite=overwrite):
        model, optimizer = new_model(model_config, config, fabric, init)
        previews = Previews(
            out,
            every=config.preview_every,
            first=made_from.get("init", {}).get("step", 0),
            last=config.max_steps,
            draw=partial(draw, model_config, fabric),
            show=show,
            kept=read_previews(out, up_to=last_step(out / CHECKPOINTS)),
        )
        task = replace(task, previews=previews)
        began = time.perf_counter()
        with compiling(config.compile, "train.compile"):
            steps = run_loop(
                *(fabric, model, optimizer, task, config, out),
                init=init / CHECKPOINTS if init and init.is_dir() else None,
                profile=out / PROFILE if profile else None,
                besides=besides,
            )
        share = previews.seconds / (time.perf_counter() - began)
        fabric.barrier()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(out / MODEL_FILE, steps, parameters, weights_identity(out / MODEL_FILE), share)


def _open_tokens(tokens: Place) -> TokenStore:
    store = TokenStore(tokens)
    if "train" not in store.splits:
        raise TokenStoreError(f"{tokens} has no train split, only {', '.join(store.splits)}.")
    return store


def _made_from(model: MeBTConfig, store: TokenStore) -> dict[str, Any]:
    """Returns what tells this run from another, beside its values."""
    shape = without_conditions(as_dict(model))
    for name in ("codebook_size", "grid"):  # Of the tokens.
        del shape[name]
    return {
        "model": shape,
        "tokens": {
            "store": store.fingerprint,
            "tokenizer": store.info.tokenizer,
            "codebook_size": store.codebook_size,
            "grid": list(store.grid),
        },
    }


def _model_config(shape: MeBTShape, store: TokenStore) -> tuple[MeBTConfig, str]:
    """Fits a shape to tokens, and says what it is conditioned on.

    Raises ConfigError for a shape that cannot be trained, and for conditions that the store lacks.
    """
    try:
        shape.check_trainable()
    except ValueError as error:
        raise ConfigError(f"section model: {error}") from None
    known = known_conditions(shape, store)
    fields = {**vars(shape), "labels": known.labels, "states": known.states}
    config = MeBTConfig(**fields, codebook_size=store.codebook_size, grid=store.grid)
    return config, known.said


@click.command("train")
@click.option("--tokens", type=PLACE, required=True, help="Token store to train on.")
@click.option("--out", type=OUT, required=True, help="Folder of the run to make or to go on with.")
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    help="Begin a new run with this run's last checkpoint, or with a model.safetensors.",
)
@click.option(
    "--tokenizer",
    type=FILE,
    help="Tokenizer that made the tokens: previews become pictures in OUT/previews as they come.",
)
@click.option(
    "--profile",
    is_flag=True,
    help=f"Record where the time of {RECORDED} steps goes, after {WARM_UP} more, in OUT/{PROFILE}.",
)
@log_options
@params_options
@sharding_options
@overwrite_option
def command(
    tokens: Place,
    out: Path,
    init: Path | None,
    tokenizer: Path | None,
    profile: bool,
    plots: Path | None,
    loggers: tuple[str, ...],
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    overwrite: bool,
) -> None:
    """Train MeBT on cached tokens.

    Writes OUT/model.safetensors, OUT/metrics.jsonl, and checkpoints to go on from after a stop. A
    signal (Ctrl-C, SIGTERM, SIGUSR1) stops it after the step at hand with exit code 75: run it
    again to go on. Values: sections `model` (its shape) and `train` of the params file.

    Every `train.preview_every` steps it draws from the same four seeds: OUT/previews keeps their
    tokens, for `mebt report`, and with --tokenizer pictures to look at while it trains.

    `model.conditions` names what the model is given beside tokens, of what the store holds: it says
    what that is, and `mebt sample` can then be told what to draw.

    --plots and --logger copy the log, for `dvc plots`, TensorBoard, Weights & Biases and others;
    a run goes on by OUT/metrics.jsonl alone.

    --init RUN begins with the weights, the optimizer's state and the step of another run, such as
    one of `mebt import-model --optimizer`; `train.max_steps` counts its steps too. --init FILE, a
    model.safetensors, begins with its weights alone, at step 0: fine-tuning. One that knows no
    conditions can be taught some.

    \b
    Example:
      mebt train --tokens tokens --out run --set train.max_steps=2000
      mebt train --tokens tokens --out run --devices 8 --strategy fsdp
      mebt train --tokens tokens --out run --plots plots/train --logger tensorboard
      mebt train --tokens tokens --out steered --set 'model.conditions=[label,action]'
      mebt train --tokens tokens --out tuned --init run/model.safetensors
    """
    keep_apart(out, tokens, params, init, tokenizer)
    shape = load_section(params, "model", MeBTShape, overrides)
    config = load_section(params, "train", TrainConfig, overrides)
    if tokenizer and not config.preview_every:
        raise ConfigError("--tokenizer has no effect if train.preview_every is 0.")
    precision = launch.settle("train.precision", config.precision, recorded(out, "precision"))
    fabric = launch(precision)
    trained = train(
        *(tokens, out, shape, config),
        fabric=fabric,
        init=init,
        tokenizer=tokenizer,
        profile=profile,
        besides=Besides(plots, loggers),
        overwrite=overwrite,
    )
    if fabric.is_global_zero:
        if profile:
            click.echo(
                f"{out / PROFILE}: {TABLE} says where the time goes; {TRACE} opens in a browser at "
                "chrome://tracing or ui.perfetto.dev"
            )
        done = f"{trained.steps} steps" if trained.steps else "nothing to do"
        if trained.preview_share:
            done += f" (previews: {trained.preview_share:.1%} of their time)"
        click.echo(
            f"{trained.path}: {done}, {trained.parameters:,} parameters, "
            f"identity {trained.identity[:12]}"
        )
