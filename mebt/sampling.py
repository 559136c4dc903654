"""Whole samples: new videos, continued ones, revised drafts, and videos longer than a window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from mebt.conditions import Conditions
from mebt.draft_revise import Canvas, Noise, Predict, RowNoise, bootstrap, draft, remask, revise
from mebt.guidance import steer

MAX = {
    "num_samples": 1 << 20,
    "draft_steps": 1 << 16,
    "revise_rounds": 1000,
    "revise_groups": 1 << 16,
    "total_frames": 1 << 16,
}
"""Beyond these a value is a slip, and sampling would run out of memory or never end."""
MAX_GUIDANCE = 1000.0
MAX_FRAME_NOISE = 100.0


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How new token grids are drawn: bootstrap, then draft, then revise."""

    num_samples: int = 16
    """New videos to draw."""
    batch_size: int = 8
    """Samples drawn at once; changes speed and memory, never a sample."""
    seed: int = 0
    """Samples of another seed are others; with the same, sample i stays sample i."""
    bootstrap_steps: int = 0
    """Tokens fixed one at a time at random places before the draft; helps long windows."""
    draft_steps: int = 64
    """Beyond the number of tokens little changes: a step that would fix no token is left out."""
    schedule: Literal[
        "cosine", "linear", "quadratic", "sqrt", "square", "cube", "cosine_plus", "convex", "root"
    ] = "root"
    """Share still masked as the draft goes on; published: cosine."""
    strategy: Literal["remask", "random", "confidence"] = "remask"
    """remask: each step masks another random share and draws it anew, so that nothing is fixed
    before the end. Or what stays as it was first drawn: random places, or as published the
    likeliest tokens, which tends to empty videos."""
    temperature: float | tuple[float, float] = (1.0, 0.5)
    """Of drafted tokens: below 1 likely ones are drawn more often still. A pair, for remask: at
    first, and towards the end."""
    frame_noise: float = 0.0
    """Of remask: how unevenly a step's share falls on latent frames. At 0 each token is masked or
    not by itself; at 1 some frames are masked nearly whole and others hardly, so that how things
    move is drawn anew too, not read from what is left of each frame: better for some
    models, worse for others, so try both."""
    top_k: int | None = None
    """Draft from this many of the likeliest tokens only; null: from all."""
    top_p: float | None = None
    """Draft from the likeliest tokens that together have this probability; null: from all."""
    confidence_temperature: float = 4.0
    """Noise in the order of confidence; 0: strictly the most certain first."""
    confidence_schedule: Literal["linear", "constant", "cosine"] = "linear"
    """How the confidence temperature falls as the draft goes on."""
    revise_rounds: int = 0
    """Times that every position is predicted again; 0: keep the draft."""
    revise_groups: int = 4
    """Groups that a round predicts in turn, each from all others; with as many as there are tokens
    or more, each token is a group."""
    revise_temperature: float = 0.7
    """The temperature of revised tokens."""
    guidance: float | tuple[float, float] = 1.0
    """How much further drafted tokens follow the conditions than without guidance, which is 1; each
    model call then takes twice as long. A pair: at first, and towards the end."""
    revise_guidance: float = 1.0
    """The same, of revised tokens."""
    keep: tuple[int, ...] = ()
    """Latent frames of given windows that never change: the first ones to continue a video, the
    first and the last to fill in between."""
    total_frames: int | None = None
    """Latent frames of a sample; null: as many as the model's window. A longer one is made by a
    window that slides, a shorter one is drawn as it is. (`mebt sample` counts video frames.)"""
    context_frames: int = 1
    """Latent frames of all there is so far with which each sliding window begins."""
    redraw_frames: int = 0
    """Latent frames at the end of each window but the last that the next one draws anew: nothing
    was behind them when they were drawn."""

    def __post_init__(self) -> None:
        for name in (
            *("num_samples", "batch_size", "draft_steps", "revise_groups"),
            *("total_frames", "context_frames"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name, most in MAX.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}.")
        if min(self.temperatures) < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}.")
        for name in (
            *("bootstrap_steps", "revise_rounds"),
            *("confidence_temperature", "revise_temperature", "redraw_frames"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for scale in (*self.guidances, self.revise_guidance):
            if not 0 <= scale <= MAX_GUIDANCE:
                raise ValueError(f"guidance must be in 0 … {MAX_GUIDANCE:g}, got {scale}.")
        if not 0 <= self.frame_noise <= MAX_FRAME_NOISE:
            raise ValueError(
                f"frame_noise must be in 0 … {MAX_FRAME_NOISE:g}, got {self.frame_noise}."
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in 0 … 2**63 - 1, got {self.seed}.")
        if self.strategy != "remask" and isinstance(self.temperature, tuple):
            raise ValueError(
                f"temperature {list(self.temperature)} is a pair, but strategy {self.strategy} has "
                "one; set it to a number, such as 1.0."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if len(set(self.keep)) < len(self.keep) or min(self.keep, default=0) < 0:
            raise ValueError(f"keep must name different latent frames from 0 on, got {self.keep}.")

    @property
    def temperatures(self) -> tuple[float, float]:
        """The temperature at first, and towards the end."""
        pair = self.temperature
        return pair if isinstance(pair, tuple) else (pair, pair)

    @property
    def guidances(self) -> tuple[float, float]:
        """The guidance of drafted tokens at first, and towards the end."""
        pair = self.guidance
        return pair if isinstance(pair, tuple) else (pair, pair)


def sample_generator(seed: int, number: int, device: torch.device | str = "cpu") -> Generator:
    """Returns the generator of one sample: nothing else is drawn from it."""
    return Generator(device).manual_seed((seed * 1_000_003 + number) % (1 << 63))


def row_noise(config: SampleConfig, numbers: Sequence[int], device: torch.device | str) -> RowNoise:
    """Returns the noise of the samples with these numbers."""
    return RowNoise([sample_generator(config.seed, number, device) for number in numbers])


@torch.inference_mode()
def sample(
    predict: Predict,
    grid: tuple[int, int, int],
    config: SampleConfig,
    *,
    numbers: Sequence[int],
    given: tuple[Tensor, Tensor] | None = None,
    revise_only: bool = False,
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "B N"]:
    """Draws the samples with these numbers, of one window of this grid [t h w], flattened.

    Bootstrap, draft, revise.

    `given` is (tokens [B N], positions [B Nc]) to keep: prediction, interpolation and in-painting
    differ only in which positions are given. With `revise_only` the other tokens of `given` are a
    draft already. `conditions` say what else is known of each, for a `predict` that takes them as
    `MeBT` does. A sample depends on the weights, the config, its seed, its number and what it is
    given, not on its batch.
    """
    if given is None:
        start = Canvas.empty((len(numbers), math.prod(grid)), device)
    else:
        start = Canvas.given(given[0].to(device), given[1].to(device))
    noise = row_noise(config, numbers, device)
    return fill_window(
        *(predict, start, grid, config, noise, conditions),
        unconditional=given is None,
        revise_only=revise_only,
    ).tokens


def fill_window(
    predict: Predict,
    start: Canvas,
    grid: tuple[int, int, int],
    config: SampleConfig,
    noise: Noise,
    conditions: Conditions | None,
    *,
    unconditional: bool,
    revise_only: bool = False,
) -> Canvas:
    """Draws every open position of a window; `unconditional` if no token of it was given.

    Of the grid [t h w] only h and w are read: a window may be shorter.
    """
    drafting = revising = predict
    if conditions is not None:
        guided = steer(predict, conditions, start.targets.shape[1])
        scale = config.revise_guidance
        drafting, revising = guided(config.guidances), guided((scale, scale))
    canvas = start
    if not revise_only:
        canvas = bootstrap(drafting, start, num_steps=config.bootstrap_steps, noise=noise)
        canvas = _draft(drafting, canvas, grid, config, noise, unconditional=unconditional)
    canvas = Canvas(canvas.tokens, start.context, start.targets)
    for _ in range(config.revise_rounds):
        canvas = revise(
            revising,
            canvas,
            num_groups=config.revise_groups,
            temperature=config.revise_temperature,
            noise=noise,
        )
    return canvas


def _draft(
    predict: Predict,
    canvas: Canvas,
    grid: tuple[int, int, int],
    config: SampleConfig,
    noise: Noise,
    *,
    unconditional: bool,
) -> Canvas:
    values: dict[str, Any] = {
        **{"num_steps": config.draft_steps, "noise": noise, "schedule": config.schedule},
        **{"top_k": config.top_k, "top_p": config.top_p},
    }
    if config.strategy == "remask":
        return remask(
            *(predict, canvas),
            temperatures=config.temperatures,
            frame_tokens=math.prod(grid[1:]),
            frame_noise=config.frame_noise,
            **values,
        )
    return draft(
        predict,
        canvas,
        strategy=config.strategy,
        temperature=config.temperatures[0],
        confidence_temperature=config.confidence_temperature,
        confidence_schedule=config.confidence_schedule,
        unconditional=unconditional,
        **values,
    )
