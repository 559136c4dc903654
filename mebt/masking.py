"""Which tokens are context and which are to be predicted: schedules, splits, clip lengths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda t: torch.cos(math.pi / 2 * t),
    "linear": lambda t: 1 - t,
    "quadratic": lambda t: (1 - t) ** 2,
    "sqrt": lambda t: 1 - torch.sqrt(t),
    "square": lambda t: 1 - t**2,
    "cube": lambda t: 1 - t**3,
    "cosine_plus": lambda t: (1 + torch.cos(math.pi * t)) / 2,
    "convex": lambda t: (1 - t) ** 3,
    "root": lambda t: torch.sqrt(1 - t),
}
"""Mask ratio as a function of progress, from 1 at 0 to 0 at 1."""

LengthPriorName = Literal["longest", "uniform", "gaussian"]
PRIOR_WIDTH = 2.0
"""Standard deviation of the Gaussian length prior, in time scales, as published."""


@dataclass(frozen=True)
class MaskSplit:
    """Context and target positions of a batch; all rows share the counts."""

    context: Int[Tensor, "B Nc"]
    targets: Int[Tensor, "B Nt"]
    num_masked: int
    """Masked positions; more than the targets if a budget cut those short."""
    num_tokens: int
    """Positions of the clip that the split is of."""


def num_masked(schedule: str, progress: float, num_tokens: int) -> int:
    """Returns ceil(ratio * N), in float32 throughout.

    In float64 cos(pi/2) is a little above 0 and its ceiling 1: one token would stay masked.
    """
    ratio = SCHEDULES[schedule](torch.tensor(progress, dtype=torch.float32))
    return int(torch.ceil(ratio * num_tokens))


def split_positions(
    order: Int[Tensor, "B N"],
    *,
    num_masked: int,
    budget: int | None = None,
    frames: tuple[int, int] | None = None,
    tokens_per_frame: int = 1,
) -> MaskSplit:
    """Splits each row of a permutation of positions into context and targets.

    `frames` (start, length) keeps only the positions of these latent frames, in the row's order
    and with their places in the whole grid. The first positions are context, the last
    `min(budget, num_masked)` targets. At least one position is a target, and none is both: the
    published code makes every position both when nothing is masked.
    """
    if frames is not None:
        start, length = (count * tokens_per_frame for count in frames)
        inside = (order >= start) & (order < start + length)
        order = order[inside].reshape(len(order), length)  # Every row has as many inside.
    total = order.shape[1]
    masked = min(max(num_masked, 1), total)
    targets = masked if budget is None else min(budget, masked)
    # With a budget, positions in between are neither context nor targets.
    return MaskSplit(order[:, : total - masked], order[:, total - targets :], masked, total)


def length_probabilities(
    step: int, num_lengths: int, *, prior: LengthPriorName, time_scale: float
) -> Float[Tensor, " L"]:
    """Returns how likely a training clip has 1, 2, … latent frames, in float64.

    `gaussian`: clips grow with training; length L is likeliest at step (L - 1) * time_scale. The
    published names gaussian2 and gaussian100000_2 are time scales of 30,000 and 100,000. Weights
    are relative to the largest, so that they never all underflow to zero.
    """
    lengths = torch.arange(1, num_lengths + 1, dtype=torch.float64)
    if prior == "longest":
        weights = (lengths == num_lengths).double()
    elif prior == "uniform":
        weights = torch.ones_like(lengths)
    else:
        exponent = -((step - (lengths - 1) * time_scale) ** 2) / (
            2 * (time_scale * PRIOR_WIDTH) ** 2
        )
        weights = torch.exp(exponent - exponent.max())
    return weights / weights.sum()


def draw_split(
    order: Int[Tensor, "B N"],
    *,
    grid: tuple[int, int, int],
    step: int,
    generator: Generator,
    schedule: str = "linear",
    length_prior: LengthPriorName = "longest",
    time_scale: float = 30_000.0,
    budget: int | None = None,
    empty_share: float = 0.0,
) -> MaskSplit:
    """Draws one mask ratio, clip length and first latent frame, and splits every row by them.

    One draw for the whole batch, as published: so all rows, and all processes that draw with equal
    generators, have equal work. The first `empty_share` of all progress masks everything.
    """
    num_frames, height, width = grid
    progress = float(torch.rand((), generator=generator))
    if progress < empty_share:
        progress = 0.0
    lengths = length_probabilities(step, num_frames, prior=length_prior, time_scale=time_scale)
    length = 1 + int(torch.multinomial(lengths, 1, generator=generator))
    start = int(torch.randint(num_frames - length + 1, (), generator=generator))
    return split_positions(
        order,
        num_masked=num_masked(schedule, progress, length * height * width),
        budget=budget,
        frames=(start, length),
        tokens_per_frame=height * width,
    )


def draw_order(
    rows: range, num_tokens: int, *, step_seed: Callable[[int], int]
) -> Int[Tensor, "B N"]:
    """Draws a permutation for each of these rows of the global batch, each from its own seed."""
    orders = []
    for row in rows:
        generator = Generator().manual_seed(step_seed(row))
        orders.append(torch.randperm(num_tokens, generator=generator))
    return torch.stack(orders)
