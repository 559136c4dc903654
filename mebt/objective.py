"""What MeBT learns from: tokens hidden anew at each step, and how well they are guessed.

Section 3.3 of the paper (arXiv 2303.11251): how many tokens are hidden is drawn for each step.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from mebt.conditions import Conditions
from mebt.config import MeBTConfig
from mebt.loss import held_out_loss, masked_token_loss
from mebt.masking import SCHEDULES, LengthPriorName, draw_split

HELD_OUT_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of hidden tokens at which held-out windows are measured."""
MASK_RATIO_BINS = 5
"""Equal ranges of the mask ratio whose losses are logged apart."""
WITHOUT = "val_loss_without/mask_100"
"""The held-out loss of a conditional model that is not given its conditions, all being hidden."""


class Micro(NamedTuple):
    """A micro-batch."""

    tokens: Int[Tensor, "B N"]
    order: Int[Tensor, "B N"]
    """A permutation of positions for each row."""
    conditions: Conditions | None = None
    seen: Int[Tensor, "B N"] | None = None
    """The tokens as they are where they are context; None: as they are."""


HeldOut = tuple[Tensor, Conditions | None]
"""Tokens [B N], and what is known beside them."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which tokens are hidden at each step, and how much each weighs."""

    schedule: str | tuple[str, str] = ("linear", "root")
    """Mask ratio as a function of a progress drawn evenly from 0 … 1; a pair: in the first and the
    second half of the steps. With root, more is masked, as often as `remask` asks for it."""
    empty_share: float = 0.02
    """Share of the steps in which everything is masked, as where a sample begins; else that would
    be as rare as any other number of tokens. Published: 0."""
    average_loss: float = 1.0
    """1: mean over masked tokens; 0: a batch weighs as much as is masked in it."""
    label_smoothing: float = 0.0
    """Share of the probability that every token gets alike in what is to be predicted."""
    context_noise: float = 0.0
    """Share of the context tokens that are replaced by random ones, as a sample's own mistakes are
    in what it goes on from; against drift of long videos. Published: 0."""
    budget: int | None = None
    """Most tokens that are predicted in one pass; null: all that are masked."""
    length_prior: LengthPriorName = "longest"
    """Length of training clips: longest, uniform, or gaussian (short first, then longer)."""
    time_scale: float = 30_000.0
    """Steps after which gaussian clips grow by a latent frame; published: 30,000 or 100,000."""

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            if schedule not in SCHEDULES:
                raise ValueError(
                    f"unknown schedule {schedule!r}; choose from {', '.join(SCHEDULES)}."
                )
        for name in ("average_loss", "label_smoothing", "empty_share", "context_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}.")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1, got {self.budget}.")
        if self.time_scale <= 0:
            raise ValueError(f"time_scale must be above 0, got {self.time_scale}.")

    @property
    def schedules(self) -> tuple[str, str]:
        """The schedule of the first half of the steps, and of the second."""
        pair = self.schedule
        return pair if isinstance(pair, tuple) else (pair, pair)


def with_noise(
    tokens: Int[Tensor, "B N"], share: float, codebook_size: int, seeds: Iterable[int]
) -> Int[Tensor, "B N"]:
    """Replaces a share of the tokens by random ones; each row draws by its own seed."""
    if not share:
        return tokens
    noisy = tokens.clone()
    for row, seed in zip(noisy, seeds, strict=True):
        generator = Generator().manual_seed(seed)
        replaced = torch.rand(len(row), generator=generator) < share
        others = torch.randint(codebook_size, row.shape, generator=generator)
        row[replaced] = others[replaced]
    return noisy


def percent(ratio: float) -> int:
    """Returns a mask ratio as names of numbers say it."""
    return round(100 * ratio)


def mask_ratio_bin(ratio: float) -> str:
    """Names the range of a mask ratio in per cent, such as `mask_20_40`."""
    width = 100 // MASK_RATIO_BINS
    low = min(int(ratio * MASK_RATIO_BINS), MASK_RATIO_BINS - 1) * width
    return f"mask_{low:02d}_{low + width:02d}"


def logged_names(*, conditional: bool) -> list[str]:
    """Names every number that is logged of a model, whichever of them a step measures."""
    bins = [mask_ratio_bin(n / MASK_RATIO_BINS) for n in range(MASK_RATIO_BINS)]
    at_bins = [f"{key}/{name}" for key in ("loss", "accuracy") for name in bins]
    held_out = [
        f"val_{key}/mask_{percent(ratio)}"
        for key in ("loss", "accuracy")
        for ratio in HELD_OUT_RATIOS
    ]
    return [*at_bins, "val_loss", *held_out, *([WITHOUT] if conditional else [])]


def objective(
    module: nn.Module,
    micro: Micro,
    *,
    model: MeBTConfig,
    config: ObjectiveConfig,
    step: int,
    generator: Generator,
    late: bool = False,
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Returns the loss of a micro-batch, and what to log of it.

    How many tokens are hidden is drawn from `generator`: the same for all micro-batches of a step
    if each gets one of the same seed. `late` says that this is the second half of the steps.
    """
    tokens, order, conditions, seen = micro
    split = draw_split(
        order,
        grid=model.grid,
        step=step,
        generator=generator,
        schedule=config.schedules[late],
        empty_share=config.empty_share,
        length_prior=config.length_prior,
        time_scale=config.time_scale,
        budget=config.budget,
    )
    targets = tokens.gather(1, split.targets)
    output = module(
        (tokens if seen is None else seen).gather(1, split.context),
        split.context,
        split.targets,
        targets,
        config.label_smoothing,
        conditions,
    )
    loss = masked_token_loss(
        output.total,
        len(tokens),
        num_masked=split.num_masked,
        num_tokens=split.num_tokens,
        average=config.average_loss,
    )
    name = mask_ratio_bin(split.num_masked / split.num_tokens)
    return loss, {
        f"loss/{name}": output.total.detach() / targets.numel(),
        f"accuracy/{name}": output.num_correct / targets.numel(),
    }


def held_out_means(
    model: nn.Module,
    batches: Callable[[str], Iterable[HeldOut]],
    *,
    mask_ratios: Iterable[float],
    generator: Callable[[int], Generator],
) -> dict[int, tuple[float, float]]:
    """Returns, by per cent hidden, the mean cross-entropy and accuracy of hidden tokens.

    `batches` yields the same windows for each ratio, on the model's device; it is told which ratio
    it is for, as in "30% hidden". `generator` makes the one that draws the masks of a per cent.
    """
    found = {}
    for ratio in mask_ratios:
        hidden = percent(ratio)
        draws, sums, count = generator(hidden), torch.zeros(2, dtype=torch.float64), 0
        for tokens, conditions in batches(f"{hidden}% hidden"):
            means = held_out_loss(
                model, tokens, mask_ratio=ratio, generator=draws, conditions=conditions
            )
            sums += torch.tensor(means, dtype=torch.float64) * len(tokens)
            count += len(tokens)
        loss, accuracy = (sums / count).tolist()
        found[hidden] = (loss, accuracy)
    return found
