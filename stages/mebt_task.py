"""What a training run of MeBT is made of: its values, its batches, its loss, its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from lightning_fabric import Fabric
from torch import Generator, Tensor, nn

from mebt import (
    Conditions,
    MeBT,
    MeBTConfig,
    assemble,
    load_model,
    model_metadata,
    save_model,
    weights_identity,
)
from mebt.masking import draw_order
from mebt.model import PositionInit
from mebt.objective import (
    Micro,
    ObjectiveConfig,
    logged_names,
    objective,
    with_noise,
)
from mebt.optim import OptimizerKind, make_optimizer
from mebt.weights import CONDITION_FIELDS, MODEL_FILE, read_config
from pipeline.config import Precision, as_dict
from pipeline.device import send
from pipeline.errors import CheckpointError, user_errors
from pipeline.seeds import step_seed
from pipeline.storage.files import replacing
from pipeline.store.batches import Balance, Batches
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import TokensOf, check_same_tokens
from pipeline.store.window import Window
from pipeline.training.folder import last_state
from pipeline.training.fsdp import apply_fsdp
from pipeline.training.task import LoopConfig, Task
from pipeline.tuning import SMALL, keep_freed
from stages.conditions import StoreConditions
from stages.held_out import held_out_windows, mask_generator, validate

ORDER_DRAW, NOISE_DRAW, DROP_DRAW = -2, -250_000, -500_000
"""Seeds for other draws than a rank's own, 0, 1, …, and that of masks; the order of row i is
ORDER_DRAW - i, and the noise of its context NOISE_DRAW - i."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ObjectiveConfig, LoopConfig):
    """How MeBT is trained on cached tokens."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    cosine: bool = True
    """Let the learning rate fall to zero along half a cosine; otherwise it is constant."""
    stable_share: float = 0.6
    """Share of the steps after `warmup_steps` at the highest learning rate, before `cosine` lets it
    fall in the rest. At 0 it falls all along, and less is learned."""
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
    """muon: for the matrices of layers, with AdamW for the rest, learns in fewer steps; adamw:
    for all, as published."""
    weight_decay: float = 0.01
    """Of Linear weights only."""
    init_std: float | None = None
    """Deviation of the first weights; null: 1 / sqrt(width). Published: 0.02, for width 1024."""
    position_init: PositionInit = "local"
    """What is near at first: local, sines of the place in time, height and width, with latents that
    read what is around them; sines, of positions alone; or normal draws as published, whose
    neighbourhoods have to be learned."""
    condition_dropout: float = 0.1
    """Share of windows that are given none of their conditions, so that the model can do without:
    guidance needs that."""
    balance: Balance = "window"
    """window: each window once per epoch; video: each video once, as published."""
    memory_gb: float = 4.0
    """Memory for cached tokens; the shuffle is global if the train split fits."""
    validation_windows: int = 64
    """Held-out windows measured at each validation."""
    preview_every: int = 500
    """Steps from one preview to the next: what the model draws of the same four seeds by then, to
    be seen in the report; 0: none. Each takes as long as 1 to 3 steps on 16 windows, or 4 on 4, and
    more than twice that with pictures (`--tokenizer`)."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, more time, the same numbers."""
    compile: bool = False
    """Compile the layers with `torch.compile` when training begins; the same numbers to rounding.
    Needs a C++ compiler, and on a GPU Triton."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        ObjectiveConfig.__post_init__(self)
        for name in ("weight_decay", "preview_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("memory_gb", "init_std"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be in [0, 1], got {self.condition_dropout}.")
        if self.validation_windows < 1:
            raise ValueError(f"validation_windows must be at least 1: {self.validation_windows}.")


def mebt_task(
    store: TokenStore, model: MeBTConfig, config: TrainConfig, fabric: Fabric, result: Path
) -> Task:
    """Makes what the loop trains: MeBT on the train split of a token store."""
    stream = Batches(
        *(store, "train"),
        batch_size=config.batch_size,
        seed=config.seed,
        memory_gb=config.memory_gb,
        balance=config.balance,
    )
    given = None
    if model.conditions:
        given = StoreConditions(store, "train", model, kept_shards=stream.kept_shards)
    size = max(1, config.batch_size // config.accumulate)
    held_out = held_out_windows(store, config.validation_windows, model)

    def loss(
        module: nn.Module, micro: Micro, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        return objective(
            module,
            micro,
            model=model,
            config=config,
            step=step,
            generator=mask_generator(config.seed, step),
            late=step >= config.max_steps / 2,
        )

    return Task(
        name="train",
        batches=lambda step: _batches(stream, given, step, fabric, config, model),
        names=stream.names,
        loss=loss,
        validate=partial(validate, held_out=held_out, seed=config.seed, batch_size=size),
        export=partial(_export, result, model, store),
        result=result,
        rate_name="tokens",
        rate_per_step=config.batch_size * model.num_tokens,
        measures=logged_names(conditional=bool(model.conditions)),
    )


def _batches(
    stream: Batches,
    given: StoreConditions | None,
    step: int,
    fabric: Fabric,
    config: TrainConfig,
    model: MeBTConfig,
) -> list[Micro]:
    """Returns this process's part of a step's batch, in micro-batches."""
    rank, world_size = fabric.global_rank, fabric.world_size
    share = config.batch_size // world_size
    mine = stream.tokens(step, rank=rank, world_size=world_size)
    numbers = range(rank * share, (rank + 1) * share)
    order = draw_order(
        numbers,
        model.num_tokens,
        step_seed=lambda row: step_seed(config.seed, step, ORDER_DRAW - row),
    )
    draws = (step_seed(config.seed, step, NOISE_DRAW - row) for row in numbers)
    noisy = with_noise(mine, config.context_noise, model.codebook_size, draws)
    parts = (send(x, fabric.device).chunk(config.accumulate) for x in (mine, order, noisy))
    tokens, orders, seen = parts
    conditions: list[Conditions | None] = [None] * config.accumulate
    if given is not None:
        rows = stream.own_rows(step, rank=rank, world_size=world_size)
        dropped = dropped_rows(config, step)[rank * share : (rank + 1) * share]
        kept = given.read(rows).without(dropped).changed(lambda x: send(x, fabric.device))
        conditions[:] = kept.chunks(share // config.accumulate)
    return [Micro(*parts) for parts in zip(tokens, orders, conditions, seen, strict=True)]


def dropped_rows(config: TrainConfig, step: int) -> Bool[Tensor, " B"]:
    """Says which windows of a step's global batch are given no conditions."""
    generator = Generator().manual_seed(step_seed(config.seed, step, DROP_DRAW))
    return torch.rand(config.batch_size, generator=generator) < config.condition_dropout


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


def beginning(
    init: Path, model: MeBTConfig, store: TokenStore, config: TrainConfig
) -> dict[str, Any]:
    """Returns the record of what a run begins with: a run's last checkpoint, or a model file.

    Raises PipelineError if that is no model of this config, shape and tokenizer; a model file need
    not know the conditions, if it knows none at all.
    """
    weights = init / MODEL_FILE if init.is_dir() else init
    if not weights.exists():
        raise CheckpointError(f"{weights} is missing, so {init} is no run to begin with.")
    with user_errors():
        metadata = model_metadata(weights)
        theirs = as_dict(read_config(weights))
    free = CONDITION_FIELDS if weights == init and not theirs["conditions"] else ()
    for key, ours in as_dict(model).items():
        if theirs[key] != ours and not key.endswith("dropout") and key not in free:
            found, wanted = (str(value)[:200] for value in (theirs[key], ours))
            raise CheckpointError(f"{weights} has {key} {found}, but this run has {wanted}.")
    made_for = TokensOf(weights, metadata.get("tokenizer") or None, model.codebook_size, model.grid)
    advice = "Give the tokens that it was trained on."
    check_same_tokens(made_for, TokensOf.store(store), advice, unknown_fits=True)
    if weights == init:
        return {"step": 0, "sha256": weights_identity(init)}
    return last_state(init, weights, max_steps=config.max_steps, optimizer=config.optimizer)


def begin_with(model: MeBT, other: MeBT) -> None:
    """Takes over the weights of a model; conditions that it knows nothing of add nothing yet."""
    weights = other.state_dict()
    if not other.config.conditions:
        added = (x for x in model.state_dict().items() if x[0].startswith("condition_embedding."))
        weights |= {name: torch.zeros_like(tensor) for name, tensor in added}
    model.load_state_dict(weights)


def new_model(
    shape: MeBTConfig, config: TrainConfig, fabric: Fabric, init: Path | None
) -> tuple[MeBT, torch.optim.Optimizer]:
    """Makes the model as it is before its first step, and its optimizer.

    The weights are random, or those of `init` if that is a file: the state of a run is for the loop
    to restore. With FSDP each process holds a slice of them.
    """
    torch.manual_seed(config.seed)
    if config.activation_checkpointing:
        keep_freed(SMALL)
    model = MeBT(shape, activation_checkpointing=config.activation_checkpointing)
    model.initialize(config.init_std or shape.width**-0.5, positions=config.position_init)
    if init and init.is_file():
        begin_with(model, load_model(init))
    if config.compile:
        for block in model.blocks:  # One by one: they share their code, so few are compiled.
            block.compile(dynamic=True)
    apply_fsdp(fabric, model, model.blocks)
    optimizer = make_optimizer(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        kind=config.optimizer,
        fused=config.precision != "16-mixed",
    )
    return model, optimizer
