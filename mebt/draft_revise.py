"""Sampling: choose tokens, fix the most certain ones, draft whole windows, revise them.

Every function works on a `predict` callable, so any model, or a test's oracle, can be sampled.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mebt.masking import num_masked

SAMPLE_CHUNK, ROWS_AT_ONCE = 256, 32
"""Targets whose logits are in memory at once; and of these, whose probabilities and noise are, so
that they stay in a CPU's cache. Fixed, as noise is drawn for so many: a sample must not depend on
its batch."""


@runtime_checkable
class Logits(Protocol):
    """Logits [B Nt K], read a few rows at a time: a tensor, or what computes those rows then."""

    def __getitem__(self, part: tuple[slice, slice], /) -> Tensor:
        """Returns `logits[:, start:stop]`."""


Predict = Callable[[Tensor, Tensor, Tensor], Logits]
"""(context tokens [B Nc], context positions [B Nc], target positions [B Nt]) -> logits."""

CONFIDENCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: math.cos(math.pi / 2 * progress),
}
"""Factor of the confidence temperature as a function of progress."""


@runtime_checkable
class Noise(Protocol):
    """Where the sampler's random numbers come from."""

    def exponential(self, *shape: int) -> Tensor:
        """Returns Exp(1) noise [B, *shape]."""

    def normal(self, *shape: int) -> Tensor:
        """Returns standard normal noise [B, *shape]."""

    def permutations(self, count: int) -> Tensor:
        """Returns a permutation of range(count) for each row, [B, count]."""


class RowNoise:
    """Noise that gives every row its own generator, so a sample does not know its batch."""

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.generators = generators

    def exponential(self, *shape: int) -> Tensor:
        """Returns Exp(1) noise [B, *shape], positive and finite.

        Each is -log(1 - (r + 1/2) / 2**31) of 31 random bits r: on a CPU in a fraction of the time
        of torch's own. The smallest noises decide a draw, and those are small r, which float32
        holds exactly.
        """
        device = self.generators[0].device
        bits = torch.empty((len(self.generators), *shape), dtype=torch.int32, device=device)
        for row, generator in zip(bits, self.generators, strict=True):
            row.random_(generator=generator)
        share = bits.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=2.0**-24 - 1)
        return share.log1p_().neg_()

    def normal(self, *shape: int) -> Tensor:
        """Returns standard normal noise [B, *shape]."""
        return torch.stack(
            [torch.randn(shape, generator=g, device=g.device) for g in self.generators]
        )

    def permutations(self, count: int) -> Tensor:
        """Returns a permutation of range(count) for each row, [B, count]."""
        return torch.stack(
            [torch.randperm(count, generator=g, device=g.device) for g in self.generators]
        )


def token_probabilities(
    logits: Float[Tensor, "B Nt K"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "B Nt K"]:
    """Turns logits into what tokens are drawn from.

    `top_k` keeps every logit that reaches the k-th largest, so ties keep more than k; `top_p`
    keeps the likeliest tokens until their mass reaches p, at least one.
    """
    logits = logits.float()
    if temperature != 1:
        logits = logits / (temperature + 1e-8)
    if top_k is not None:
        if top_k > logits.shape[-1]:
            raise ValueError(f"top_k is {top_k}, but there are {logits.shape[-1]} tokens.")
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probs = logits.softmax(-1)
    if probs[..., 0].isnan().any():  # One logit that is no number spoils its whole row.
        usable = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        probs = usable.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked  # The mass of all likelier ones: 0 for the first.
        dropped = torch.zeros_like(probs, dtype=torch.bool)
        dropped.scatter_(-1, order, before >= top_p)  # Back into the order of the codebook.
        probs = probs.masked_fill(dropped, 0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def choose_tokens(
    probs: Float[Tensor, "B Nt K"], exponential: Float[Tensor, "B Nt K"]
) -> tuple[Int[Tensor, "B Nt"], Float[Tensor, "B Nt"]]:
    """Draws a token at each position (p / Exp(1) is largest with probability p).

    The noise must be positive and finite: then a token of probability 0 is never drawn. Returns the
    tokens and their probabilities, the scores of confidence.
    """
    tokens = (probs / exponential).argmax(-1)
    return tokens, probs.gather(-1, tokens[..., None])[..., 0]


def draw(
    logits: Logits,
    count: int,
    noise: Noise,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Int[Tensor, "B Nt"], Float[Tensor, "B Nt"]]:
    """Draws tokens for the first `count` targets, and returns them with their probabilities."""
    tokens, scores = [], []
    for start in range(0, count, SAMPLE_CHUNK):
        for few in torch.split(
            logits[:, start : min(start + SAMPLE_CHUNK, count)], ROWS_AT_ONCE, dim=1
        ):
            probs = token_probabilities(few, temperature=temperature, top_k=top_k, top_p=top_p)
            drawn = choose_tokens(probs, noise.exponential(*probs.shape[1:]))
            tokens.append(drawn[0])
            scores.append(drawn[1])
    return torch.cat(tokens, dim=1), torch.cat(scores, dim=1)


def rank(
    scores: Float[Tensor, "B Nt"], exponential: Float[Tensor, "B Nt"], *, temperature: float
) -> Int[Tensor, "B Nt"]:
    """Orders positions from the surest on; temperature 0 goes by score alone."""
    # An exponential race: at temperature 1, who comes first is drawn in proportion to the scores.
    noisy = scores / scores.sum(1, keepdim=True) / exponential**temperature
    return noisy.argsort(dim=1, descending=True)


@dataclass(frozen=True)
class Canvas:
    """Windows being filled: tokens [B N], and which positions are fixed and which are open."""

    tokens: Tensor
    context: Tensor
    targets: Tensor

    @staticmethod
    def empty(shape: tuple[int, int], device: torch.device | str = "cpu") -> "Canvas":
        """Makes windows of `shape` (B, N) with every position open."""
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        positions = torch.arange(shape[1], device=device).expand(shape)
        return Canvas(tokens, positions[:, :0], positions)

    @staticmethod
    def given(tokens: Int[Tensor, "B N"], kept: Int[Tensor, "B Nc"]) -> "Canvas":
        """Makes windows that keep the tokens at `kept` and leave all other positions open."""
        is_kept = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, kept, True)
        # Stable: open positions (0) come first, in their own order, and kept ones (1) behind.
        order = is_kept.int().argsort(dim=1, stable=True)
        return Canvas(tokens, kept, order[:, : tokens.shape[1] - kept.shape[1]])

    def known(self) -> Int[Tensor, "B Nc"]:
        """Returns the tokens of the fixed positions."""
        return self.tokens.gather(1, self.context)

    def reorder(self, order: Int[Tensor, "B Nt"]) -> "Canvas":
        """Brings the open positions into another order."""
        return Canvas(self.tokens, self.context, self.targets.gather(1, order))

    def fix_first(self, tokens: Int[Tensor, "B n"]) -> "Canvas":
        """Fixes the first n open positions with these tokens."""
        count = tokens.shape[1]
        fixed = self.targets[:, :count]
        return Canvas(
            self.tokens.scatter(1, fixed, tokens),
            torch.cat([self.context, fixed], dim=1),
            self.targets[:, count:],
        )

    def fix(self, tokens: Int[Tensor, "B Nt"], order: Int[Tensor, "B Nt"], count: int) -> "Canvas":
        """Writes tokens at the open positions and fixes the first `count` of the order."""
        ranked = self.targets.gather(1, order)
        return Canvas(
            self.tokens.scatter(1, self.targets, tokens),
            torch.cat([self.context, ranked[:, :count]], dim=1),
            ranked[:, count:],
        )


def bootstrap(predict: Predict, canvas: Canvas, *, num_steps: int, noise: Noise) -> Canvas:
    """Fixes one token a step at a random open position, at temperature 1."""
    for _ in range(min(num_steps, canvas.targets.shape[1])):
        scores = noise.normal(canvas.targets.shape[1])
        order = rank(scores, noise.exponential(scores.shape[1]), temperature=0.0)
        canvas = canvas.reorder(order)  # The first is the one to fix.
        logits = predict(canvas.known(), canvas.context, canvas.targets)
        canvas = canvas.fix_first(draw(logits, 1, noise)[0])
    return canvas


def draft(
    predict: Predict,
    canvas: Canvas,
    *,
    num_steps: int,
    noise: Noise,
    schedule: str = "cosine",
    strategy: str = "confidence",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    confidence_temperature: float = 0.0,
    confidence_schedule: str = "linear",
    unconditional: bool = False,
) -> Canvas:
    """Fills all open positions in `num_steps` steps, the surest tokens or random ones first.

    Each step fixes so many that the schedule's share of positions stays open: of the positions open
    at the start, or of the whole window with `unconditional`, where steps are left out until the
    schedule is behind what was given. A step that would fix nothing is left out: what it drew would
    never be read. To know the surest tokens a step draws every open one; at random places, only
    those that it fixes.
    """
    choose = partial(draw, noise=noise, temperature=temperature, top_k=top_k, top_p=top_p)
    total = canvas.tokens.shape[1] if unconditional else canvas.targets.shape[1]
    for step in range(1, num_steps + 1):
        progress = step / num_steps
        num_new = canvas.targets.shape[1] - num_masked(schedule, progress, total)
        if num_new <= 0:
            continue
        if strategy == "random":
            canvas = canvas.reorder(noise.permutations(canvas.targets.shape[1]))
            logits = predict(canvas.known(), canvas.context, canvas.targets)
            canvas = canvas.fix_first(choose(logits, num_new)[0])
            continue
        logits = predict(canvas.known(), canvas.context, canvas.targets)
        tokens, scores = choose(logits, canvas.targets.shape[1])
        heat = confidence_temperature * CONFIDENCE_SCHEDULES[confidence_schedule](progress)
        order = rank(scores, noise.exponential(scores.shape[1]), temperature=heat)
        canvas = canvas.fix(tokens, order, num_new)
    return canvas


def _masking_order(
    canvas: Canvas, frame_tokens: int, frame_noise: float, noise: Noise
) -> Int[Tensor, "B Nt"]:
    """Draws which open positions to mask first: by noise of their own and of their latent frame."""
    total = canvas.targets.shape[1]
    if not frame_noise:
        return noise.permutations(total)
    of_frames = noise.exponential(-(-canvas.tokens.shape[1] // frame_tokens))
    shared = of_frames.log().gather(1, canvas.targets // frame_tokens)
    return (noise.exponential(total).log() + frame_noise * shared).argsort(dim=1)


def remask(
    predict: Predict,
    canvas: Canvas,
    *,
    num_steps: int,
    noise: Noise,
    schedule: str,
    temperatures: tuple[float, float],
    frame_tokens: int,
    frame_noise: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Canvas:
    """Draws open positions again and again: in each step a random share of them, which falls.

    The first step draws all, each further one the schedule's share, chosen anew, from all others.
    So nothing is fixed before the last step, and what was drawn wrongly at first, from little, can
    still be mended (as in Remasking Discrete Diffusion Models, Wang et al. 2025, arXiv 2503.00307).
    The temperature falls with the share, from the first of `temperatures` towards the second.
    `frame_noise` says how unevenly a step takes from latent frames, of `frame_tokens` positions: a
    mistake in how things move lies in all frames, so that each token alone is drawn like the rest.
    """
    hot, cold = temperatures
    total, tokens = canvas.targets.shape[1], canvas.tokens
    for step in range(num_steps if total else 0):
        count = num_masked(schedule, step / num_steps, total)
        order = canvas.targets.gather(1, _masking_order(canvas, frame_tokens, frame_noise, noise))
        masked, known = order[:, :count], order[:, count:]
        context = torch.cat([canvas.context, known], dim=1)
        logits = predict(tokens.gather(1, context), context, masked)
        temperature = cold + (hot - cold) * count / total
        drawn, _ = draw(logits, count, noise, temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = tokens.scatter(1, masked, drawn)
    return Canvas(tokens, torch.cat([canvas.context, canvas.targets], dim=1), canvas.targets[:, :0])


def group_edges(count: int, num_groups: int) -> list[tuple[int, int]]:
    """Cuts range(count) into groups that differ by one at most; none is empty."""
    edges = [count * i // num_groups for i in range(num_groups + 1)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]


def revise(
    predict: Predict,
    canvas: Canvas,
    *,
    num_groups: int,
    temperature: float,
    noise: Noise,
) -> Canvas:
    """Predicts every open position once more, group by group, each from all other positions.

    Call it with what was given as context and all else as targets: given tokens never change
    (Draft-and-Revise, NeurIPS 2022).
    """
    order = canvas.targets.gather(1, noise.permutations(canvas.targets.shape[1]))
    tokens = canvas.tokens
    for start, stop in group_edges(order.shape[1], num_groups):
        context = torch.cat([canvas.context, order[:, stop:], order[:, :start]], dim=1)
        logits = predict(tokens.gather(1, context), context, order[:, start:stop])
        drawn, _ = draw(logits, stop - start, noise, temperature=temperature)
        tokens = tokens.scatter(1, order[:, start:stop], drawn)
    return Canvas(tokens, canvas.context, canvas.targets)
