"""Guidance: predictions with conditions, moved away from those without (arXiv 2207.12598)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mebt.conditions import Conditions
from mebt.draft_revise import Logits, Predict

Scales = tuple[float, float]
"""Guidance while all is open, and towards the end: it moves with the share that is open. 1: none,
0: the conditions are ignored."""


@dataclass(frozen=True)
class GuidedLogits:
    """Logits [B Nt K] of windows, from those [2B Nt K] with conditions and then without."""

    both: Logits
    scale: float

    def __getitem__(self, part: tuple[slice, slice]) -> Float[Tensor, "B Nr K"]:
        """Computes the logits of these rows."""
        known, unknown = self.both[part].float().chunk(2)
        return torch.lerp(unknown, known, self.scale)


def steer(
    predict: Callable[..., Logits], conditions: Conditions, num_open: int
) -> Callable[[Scales], Predict]:
    """Returns what makes predictions that are given conditions, guided by scales.

    `predict` takes conditions beside tokens and positions, as `MeBT` and `CachedPredictor` do;
    `num_open` are the positions open at first. Guidance predicts each window twice, both in one
    batch; without it (1) nothing is computed that would not be else.
    """

    def guided(scales: Scales) -> Predict:
        if scales == (1.0, 1.0):
            return partial(predict, conditions=conditions)
        if scales == (0.0, 0.0):
            return predict
        (first, last), both = scales, conditions.doubled()

        def predict_guided(tokens: Tensor, context: Tensor, targets: Tensor) -> Logits:
            scale = last + (first - last) * min(1.0, targets.shape[1] / num_open)
            twice = (torch.cat([x, x]) for x in (tokens, context, targets))
            return GuidedLogits(predict(*twice, conditions=both), scale)

        return predict_guided

    return guided
