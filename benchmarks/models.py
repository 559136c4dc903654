"""The two models at work: training, sampling, encoding, decoding."""

import torch
from torch import Generator, Tensor

from benchmarks import operations
from benchmarks.machine import SIDE, product_kernels, product_rates
from benchmarks.work import Setting, Work
from mebt import MeBT, MeBTConfig, SampleConfig, bootstrap, sample
from mebt.draft_revise import Canvas, RowNoise
from mebt.kv_cache import CachedPredictor
from mebt.masking import draw_order, draw_split
from mebt.objective import Micro, ObjectiveConfig, objective
from mebt.optim import make_optimizer
from mebt.sampling import sample_generator
from pipeline.seeds import step_seed

STEPS_TRIED = 100_000
PRODUCTS = 24
"""Some ten seconds of them on two cores, as other rows take."""


def products(setting: Setting) -> Work:
    """The very products that the limit is made of, but many: the limit is the best of few.

    What else runs on a machine slows down long work, and seldom every one of a few products.
    """
    side = 64 if setting.small else SIDE
    kernels = product_kernels(setting.device, half=setting.half, side=side)
    fastest = next(iter(product_rates(setting.device, half=setting.half, side=side)))

    @torch.inference_mode()
    def run() -> None:
        for _ in range(PRODUCTS):
            kernels[fastest]()

    return Work(run=run, operations=2 * PRODUCTS * side**3)


def draws(step: int) -> Generator:
    """Returns what draws how much a training step masks."""
    return Generator().manual_seed(step_seed(0, step, -1))


def half_masked_step(config: MeBTConfig) -> int:
    """Returns the first training step whose draw masks half of the window."""
    order = torch.arange(config.num_tokens)[None]
    for step in range(STEPS_TRIED):
        split = draw_split(order, grid=config.grid, step=step, generator=draws(step))
        if 2 * split.num_masked == config.num_tokens:
            return step
    raise AssertionError("one in N steps masks half")


def orders(config: MeBTConfig, batch: int) -> Tensor:
    """Draws the order of positions of each window of a batch, as `mebt train` does."""
    return draw_order(range(batch), config.num_tokens, step_seed=lambda row: row)


def training_loss(model: MeBT, micro: Micro, step: int) -> Tensor:
    """Returns the loss that `mebt train` reduces."""
    loss, _ = objective(
        model,
        micro,
        model=model.config,
        config=ObjectiveConfig(),
        step=step,
        generator=draws(step),
    )
    return loss


def training_operations(config: MeBTConfig, batch: int) -> int:
    """Counts the operations of a training pass that masks half."""
    half = config.num_tokens // 2
    return 2 * operations.TRAINING * batch * operations.forward(config, half, half)


def training(
    setting: Setting,
    *,
    frames: int,
    batch: int,
    width: int = 1024,
    activation_checkpointing: bool = False,
) -> Work:
    """Forward and backward of the loss that `mebt train` reduces; gradients stand beforehand."""
    model = setting.model(frames, width, activation_checkpointing=activation_checkpointing).train()
    config = model.config
    step = half_masked_step(config)
    tokens = torch.randint(config.codebook_size, (batch, config.num_tokens))
    micro = Micro(tokens.to(setting.device), orders(config, batch).to(setting.device))

    def make_gradients() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def run() -> None:
        with setting.autocast():
            loss = training_loss(model, micro, step)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return Work(run=run, operations=training_operations(config, batch), first=make_gradients)


def adamw(setting: Setting) -> Work:
    """A step reads weight, gradient and two averages, and writes all but the gradient."""
    model = setting.model(16)
    optimizer = make_optimizer(model, learning_rate=1e-4, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    size = sum(parameter.nbytes for parameter in model.parameters())
    return Work(run=optimizer.step, bytes=7 * size, first=optimizer.step)


def forward(setting: Setting, *, frames: int) -> Work:
    """One pass over a window, half of it masked."""
    model = setting.sampled_model(frames)
    size, half = model.config.num_tokens, model.config.num_tokens // 2
    order = torch.randperm(size, device=setting.device)[None]
    tokens = torch.randint(model.config.codebook_size, (1, half), device=setting.device)

    @torch.inference_mode()
    def run() -> None:
        with setting.autocast():
            model(tokens, order[:, :half], order[:, half:])

    return Work(run=run, operations=2 * operations.forward(model.config, half, half))


def drafting(
    setting: Setting,
    *,
    frames: int,
    steps: int,
    width: int = 1024,
    top_k: int | None = None,
    first: bool = False,
) -> Work:
    """A draft by confidence of an empty window; not the `first` that a run draws, if not said so.

    The first pass over an empty window is the same for all, and `mebt sample` computes it once.
    """
    model = setting.sampled_model(frames, width)
    config = SampleConfig(
        **{"strategy": "confidence", "schedule": "cosine", "temperature": 1.0},
        **{"draft_steps": steps, "top_k": top_k},
    )
    size, device = model.config.num_tokens, setting.device
    passes = operations.draft_passes(size, steps)
    predict = CachedPredictor(model)

    def look_at_empty_window() -> None:
        canvas = Canvas.empty((1, size), device)
        with setting.autocast():
            predict(canvas.known(), canvas.context, canvas.targets)

    def run() -> None:
        predict.reset()
        with setting.autocast():
            predicting = CachedPredictor(model) if first else predict
            sample(predicting, model.config.grid, config, numbers=[0], device=device)

    return Work(
        run=run,
        operations=2 * operations.total(model.config, passes),
        first=(lambda: None) if first else look_at_empty_window,
    )


def revising(setting: Setting, *, frames: int, groups: int) -> Work:
    """One round of revision of a whole window."""
    model = setting.sampled_model(frames)
    config = SampleConfig(revise_rounds=1, revise_groups=groups)
    size, device = model.config.num_tokens, setting.device
    tokens = torch.randint(model.config.codebook_size, (1, size))
    given = (tokens, torch.zeros(1, 0, dtype=torch.int64))
    passes = operations.revise_passes(size, groups)

    def run() -> None:
        with setting.autocast():
            sample(
                CachedPredictor(model),
                model.config.grid,
                config,
                numbers=[0],
                given=given,
                revise_only=True,
                device=device,
            )

    return Work(run=run, operations=2 * operations.total(model.config, passes))


def bootstrapping(setting: Setting, *, frames: int, steps: int) -> Work:
    """The first steps of a bootstrap, each of which fixes one token of an empty window."""
    model = setting.sampled_model(frames)
    size = model.config.num_tokens
    passes = operations.bootstrap_passes(size, steps)

    @torch.inference_mode()
    def run() -> None:
        canvas = Canvas.empty((1, size), setting.device)
        noise = RowNoise([sample_generator(0, 0, setting.device)])
        with setting.autocast():
            bootstrap(CachedPredictor(model), canvas, num_steps=steps, noise=noise)

    return Work(run=run, operations=2 * operations.total(model.config, passes))


def encoding(setting: Setting) -> Work:
    """16 frames to tokens."""
    model = setting.tokenizer()
    video = torch.rand(1, 3, 16, setting.side, setting.side, device=setting.device) - 0.5

    @torch.inference_mode()
    def run() -> None:
        with setting.autocast():
            model.encode(video)

    return Work(run=run, operations=2 * operations.encode(model.config, 16, setting.side))


def decoding(setting: Setting) -> Work:
    """Tokens to 16 frames."""
    model = setting.tokenizer()
    grid = model.config.grid(16, setting.side, setting.side)
    tokens = torch.randint(model.config.codebook_size, (1, *grid), device=setting.device)

    @torch.inference_mode()
    def run() -> None:
        with setting.autocast():
            model.decode(tokens)

    return Work(run=run, operations=2 * operations.decode(model.config, 16, setting.side))
