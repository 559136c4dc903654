"""tokens -> a MeBT trained on them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Int
from lightning_fabric import Fabric
from torch import Generator, Tensor, nn

from mebt import (
    MeBT,
    MeBTConfig,
    MeBTShape,
    assemble,
    load_model,
    model_metadata,
    save_model,
    weights_identity,
)
from mebt.masking import draw_order
from mebt.model import PositionInit
from mebt.objective import (
    HELD_OUT_RATIOS,
    Micro,
    ObjectiveConfig,
    held_out_means,
    logged_names,
    objective,
)
from mebt.optim import OptimizerKind, make_optimizer
from mebt.weights import read_config
from pipeline.config import Precision, as_dict, load_section
from pipeline.device import compiling, send
from pipeline.errors import CheckpointError, ConfigError, TokenStoreError, user_errors
from pipeline.precision import precision_of
from pipeline.seeds import step_seed
from pipeline.storage.files import keep_apart, replacing
from pipeline.storage.places import Place
from pipeline.store.batches import Balance, Batches
from pipeline.store.reader import TokenStore, read_rows
from pipeline.store.window import Window
from pipeline.training.checkpoint import last_sha256, last_step
from pipeline.training.folder import open_run, recorded
from pipeline.training.fsdp import shard
from pipeline.training.loop import run_loop
from pipeline.training.previews import Previews, read_previews
from pipeline.training.profiling import RECORDED, TABLE, TRACE, WARM_UP
from pipeline.training.task import LoopConfig, Task
from pipeline.tuning import SMALL, keep_freed
from stages.launch import Launch, sharding_options
from stages.options import (
    FILE,
    OUT,
    PLACE,
    overwrite_option,
    params_options,
)
from stages.previews import decoder, draw

RESULT, CHECKPOINTS, PROFILE = "model.safetensors", "checkpoints", "profile"
MASK_DRAW, ORDER_DRAW = -1, -2
"""Beside the ranks 0, 1, … what a seed is drawn for; the order of row i is ORDER_DRAW - i."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ObjectiveConfig, LoopConfig):
    """How MeBT is trained on cached tokens."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    cosine: bool = True
    """Let the learning rate fall to zero along half a cosine; otherwise it is constant."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    ema_decay: float = 0.99
    """Decay per step of the moving average of the weights that is saved, at most
    (1 + n) / (10 + n) after n steps; 0: the weights."""
    precision: Precision = "auto"
    """Of products and attention: 32-true, bf16-mixed, 16-mixed, or auto: bf16-mixed on GPUs and
    processors that multiply in it, else 32-true, and what the run began with. Weights and loss stay
    in float32."""
    optimizer: OptimizerKind = "muon"
    """muon: for the matrices of layers, with AdamW for the rest, learns in half the steps; adamw:
    for all, as published."""
    weight_decay: float = 0.01
    """Of Linear weights only."""
    init_std: float | None = None
    """Deviation of the first weights; null: 1 / sqrt(width). Published: 0.02, for width 1024."""
    position_init: PositionInit = "local"
    """What is near at first: local, sines of the place in time, height and width, with latents that
    read what is around them; sines, of positions alone; or normal draws as published, whose
    neighbourhoods have to be learned."""
    balance: Balance = "window"
    """window: each window once per epoch; video: each video once, as published."""
    memory_gb: float = 4.0
    """Memory for cached tokens; the shuffle is global if the train split fits."""
    validation_windows: int = 64
    """Held-out windows measured at each validation."""
    preview_every: int = 500
    """Steps from one preview to the next: what the model draws of the same four seeds by then, to
    be seen in the report; 0: none. Each takes as long as one to six steps."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, more time, the same numbers."""
    compile: bool = False
    """Compile the layers with `torch.compile` when training begins; the same numbers to rounding.
    Needs a C++ compiler, and on a GPU Triton."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        ObjectiveConfig.__post_init__(self)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        for name in ("memory_gb", "init_std"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.validation_windows < 1:
            raise ValueError(f"validation_windows must be at least 1: {self.validation_windows}.")
        if self.preview_every < 0:
            raise ValueError(f"preview_every must not be negative, got {self.preview_every}.")


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


def mask_generator(seed: int, step: int) -> Generator:
    """Returns what draws how much is hidden at a step, or which of a per cent of held-out ones."""
    return Generator().manual_seed(step_seed(seed, step, MASK_DRAW))


def _validate(model: nn.Module, tokens: Tensor, config: TrainConfig) -> dict[str, float]:
    """Measures held-out tokens at fixed mask ratios, with the same masks each time."""
    device = next(model.parameters()).device
    size = max(1, config.batch_size // config.accumulate)
    means = held_out_means(
        model,
        lambda _: (send(part, device) for part in torch.split(tokens, size)),
        mask_ratios=HELD_OUT_RATIOS,
        generator=partial(mask_generator, config.seed),
    )
    found: dict[str, float] = {}
    for percent, (loss, accuracy) in means.items():
        found |= {f"val_loss/mask_{percent}": loss, f"val_accuracy/mask_{percent}": accuracy}
    return {"val_loss": sum(loss for loss, _ in means.values()) / len(means), **found}


def _beginning(
    init: Path, model: MeBTConfig, tokenizer: str | None, config: TrainConfig
) -> dict[str, Any]:
    """Returns the record of what a run begins with: a run's last checkpoint, or a model file.

    Raises PipelineError if that is no model of this config, shape and tokenizer.
    """
    weights = init / RESULT if init.is_dir() else init
    if not weights.exists():
        raise CheckpointError(f"{weights} is missing, so {init} is no run to begin with.")
    with user_errors():
        metadata = model_metadata(weights)
        theirs = as_dict(read_config(weights))
    for key, ours in as_dict(model).items():
        if theirs[key] != ours and not key.endswith("dropout"):
            raise CheckpointError(f"{weights} has {key} {theirs[key]}, but this run has {ours}.")
    made_for = metadata.get("tokenizer") or None
    if made_for and tokenizer and made_for != tokenizer:
        raise TokenStoreError(
            f"{weights} was made for tokenizer {made_for}, but the tokens are of {tokenizer}."
        )
    if weights == init:
        return {"step": 0, "sha256": weights_identity(init)}
    step = last_step(init / CHECKPOINTS)
    if not step:
        raise CheckpointError(
            f"{init} has no checkpoint to go on from; give --init {weights} to begin with its "
            "weights alone."
        )
    if step >= config.max_steps:
        raise ConfigError(
            f"{init} has done {step} steps already: train.max_steps must be above that, got "
            f"{config.max_steps}."
        )
    if (kept := recorded(init, "optimizer") or "adamw") != config.optimizer:
        raise CheckpointError(
            f"{init} holds the state of {kept}, but train.optimizer is {config.optimizer}; make "
            f"them agree, or give --init {weights} to begin with its weights alone."
        )
    return {"step": step, "sha256": last_sha256(init / CHECKPOINTS)}


def _validation_windows(store: TokenStore, most: int) -> Int[Tensor, "B N"]:
    """Reads windows evenly spread over the test split, or without one over the train split."""
    held_out = "test" if "test" in store.splits else "train"
    total = store.num_windows(held_out)
    rows = np.linspace(0, total - 1, min(most, total)).round().astype(int)
    return torch.from_numpy(read_rows(store, held_out, [int(row) for row in rows])).flatten(1)


def _batches(
    stream: Batches, step: int, fabric: Fabric, config: TrainConfig, model: MeBTConfig
) -> list[Micro]:
    """Returns this process's part of a step's batch, in micro-batches."""
    rank, world_size = fabric.global_rank, fabric.world_size
    share = config.batch_size // world_size
    mine = stream.read(step, rank=rank, world_size=world_size)
    order = draw_order(
        range(rank * share, (rank + 1) * share),
        model.num_tokens,
        step_seed=lambda row: step_seed(config.seed, step, ORDER_DRAW - row),
    )
    parts = (send(x, fabric.device).chunk(config.accumulate) for x in (mine, order))
    return list(zip(*parts, strict=True))


def _export(
    path: Path, config: MeBTConfig, store: TokenStore, weights: Mapping[str, Tensor], step: int
) -> None:
    """Writes the trained model, which says what it was trained on."""
    extra = {
        "step": str(step),
        "tokens": store.fingerprint,
        "tokenizer": store.info.tokenizer or "",
        **Window.of(store.info).metadata(),
    }
    with replacing(path) as temporary:
        save_model(temporary, assemble(config, weights), extra=extra)


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
    model_config = _model_config(shape, store)
    made_from = {
        "model": as_dict(shape),
        "tokens": {
            "store": store.fingerprint,
            "tokenizer": store.info.tokenizer,
            "codebook_size": store.codebook_size,
            "grid": list(store.grid),
        },
    }
    if init:
        made_from["init"] = _beginning(init, model_config, store.info.tokenizer, config)
    if tokenizer and not config.preview_every:
        raise ConfigError("--tokenizer has no effect if train.preview_every is 0.")
    show = decoder(tokenizer, store, fabric.device) if tokenizer else None
    validation = _validation_windows(store, config.validation_windows)
    stream = Batches(
        store,
        "train",
        batch_size=config.batch_size,
        seed=config.seed,
        memory_gb=config.memory_gb,
        balance=config.balance,
    )
    with open_run(fabric, out, config, made_from, overwrite=overwrite):
        torch.manual_seed(config.seed)
        model = _new_model(model_config, config, init if init and init.is_file() else None)
        shard(fabric, model, model.blocks)
        optimizer = make_optimizer(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            kind=config.optimizer,
            fused=config.precision != "16-mixed",
        )
        previews = Previews(
            out,
            every=config.preview_every,
            first=made_from.get("init", {}).get("step", 0),
            last=config.max_steps,
            draw=partial(draw, model_config, fabric),
            show=show,
            kept=read_previews(out, up_to=last_step(out / CHECKPOINTS)),
        )
        task = Task(
            name="train",
            batches=lambda step: _batches(stream, step, fabric, config, model_config),
            names=stream.names,
            loss=_loss(model_config, config),
            validate=lambda model: _validate(model, validation, config),
            export=partial(_export, out / RESULT, model_config, store),
            result=out / RESULT,
            rate_name="tokens",
            rate_per_step=config.batch_size * model_config.num_tokens,
            measures=logged_names(),
            previews=previews,
        )
        began = time.perf_counter()
        with compiling(config.compile, "train.compile"):
            steps = run_loop(
                *(fabric, model, optimizer, task, config, out),
                init=init / CHECKPOINTS if init and init.is_dir() else None,
                profile=out / PROFILE if profile else None,
            )
        share = previews.seconds / (time.perf_counter() - began)
        fabric.barrier()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(out / RESULT, steps, parameters, weights_identity(out / RESULT), share)


def _open_tokens(tokens: Place) -> TokenStore:
    store = TokenStore(tokens)
    if "train" not in store.splits:
        raise TokenStoreError(f"{tokens} has no train split, only {', '.join(store.splits)}.")
    return store


def _model_config(shape: MeBTShape, store: TokenStore) -> MeBTConfig:
    """Fits a shape to tokens. Raises ConfigError for a shape that cannot be trained."""
    try:
        shape.check_trainable()
    except ValueError as error:
        raise ConfigError(f"section model: {error}") from None
    fields = {**as_dict(shape), "layers": shape.layers}
    return MeBTConfig(**fields, codebook_size=store.codebook_size, grid=store.grid)


def _new_model(model: MeBTConfig, config: TrainConfig, weights: Path | None) -> MeBT:
    """Makes the model as it is before its first step, of random weights or those of a file."""
    if config.activation_checkpointing:
        keep_freed(SMALL)
    made = MeBT(model, activation_checkpointing=config.activation_checkpointing)
    made.initialize(config.init_std or model.width**-0.5, positions=config.position_init)
    if weights:
        made.load_state_dict(load_model(weights).state_dict())
    if config.compile:
        for block in made.blocks:  # One by one: they share their code, so few are compiled.
            block.compile(dynamic=True)
    return made


def _loss(
    model: MeBTConfig, config: TrainConfig
) -> Callable[[nn.Module, Micro, int], tuple[Tensor, Mapping[str, Tensor | float]]]:
    """Makes the function that returns a micro-batch's loss, with masks drawn for its step."""

    def loss(
        module: nn.Module, micro: Micro, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        generator = mask_generator(config.seed, step)
        return objective(module, micro, model=model, config=config, step=step, generator=generator)

    return loss


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
@params_options
@sharding_options
@overwrite_option
def command(
    tokens: Place,
    out: Path,
    init: Path | None,
    tokenizer: Path | None,
    profile: bool,
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

    --init RUN begins with the weights, the optimizer's state and the step of another run, such as
    one of `mebt import-model --optimizer`; `train.max_steps` counts its steps too. --init FILE, a
    model.safetensors, begins with its weights alone, at step 0: fine-tuning.

    \b
    Example:
      mebt train --tokens tokens --out run --set train.max_steps=2000
      mebt train --tokens tokens --out run --devices 8 --strategy fsdp
      mebt train --tokens tokens --out tuned --init run/model.safetensors
    """
    keep_apart(out, tokens, params, init, tokenizer)
    shape = load_section(params, "model", MeBTShape, overrides)
    config = load_section(params, "train", TrainConfig, overrides)
    precision = launch.settle("train.precision", config.precision, recorded(out, "precision"))
    fabric = launch(precision)
    made = train(
        *(tokens, out, shape, config),
        fabric=fabric,
        init=init,
        tokenizer=tokenizer,
        profile=profile,
        overwrite=overwrite,
    )
    if fabric.is_global_zero:
        if profile:
            click.echo(
                f"{out / PROFILE}: {TABLE} says where the time goes; {TRACE} opens in a browser at "
                "chrome://tracing or ui.perfetto.dev"
            )
        done = f"{made.steps} steps" if made.steps else "nothing to do"
        if made.preview_share:
            done += f" (previews: {made.preview_share:.1%} of their time)"
        click.echo(
            f"{made.path}: {done}, {made.parameters:,} parameters, identity {made.identity[:12]}"
        )
