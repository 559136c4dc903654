"""What a model of a world could reach at best, as its rules tell exactly what is likely.

  python -m benchmarks.exact --world one-square

Prints the loss that no model can beat, by the share masked; then how many samples are lawful if
`mebt sample` asks the exact model, by its calls. So what a trained model lacks is told from what
its sampler does.
"""

import argparse

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from benchmarks.quality import HELD_OUT_SEED, judge
from benchmarks.worlds import CODES, WORLDS, World, world
from mebt import SampleConfig
from mebt.masking import split_positions
from mebt.sampling import sample
from pipeline.tuning import tune_process

RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 1.0)
CALLS = (4, 8, 16, 64)
MISTAKE = 1e-6
"""Share of wrong tokens that is believed in, so that the nearest lawful videos are likely where a
draft obeys no rule."""


class ExactModel:
    """Predicts tokens of a world as its rules and `draw` make them, given any others."""

    def __init__(self, rules: World) -> None:
        maps = torch.from_numpy(rules.maps).flatten(1)
        self.roles = [(codes, (maps == role).float()) for role, codes in enumerate(rules.codes)]
        self.log_odds = float(np.log((1 - MISTAKE) * CODES / MISTAKE))
        """Of a token that fits, over one that is a mistake."""

    def __call__(
        self,
        tokens: Int[Tensor, "B Nc"],
        context: Int[Tensor, "B Nc"],
        targets: Int[Tensor, "B Nt"],
    ) -> Float[Tensor, "B Nt K"]:
        """Returns the logarithms of the probabilities of each token, as `MeBT` its logits."""
        rows = zip(tokens, context, targets, strict=True)
        return torch.stack([self._of_row(*row) for row in rows])

    def _of_row(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        is_code = torch.nn.functional.one_hot(tokens, CODES).float()
        fits = [
            self.log_odds * plays[:, context] @ is_code[:, codes.start : codes.stop]
            for codes, plays in self.roles
        ]  # By movement and code: [M, codes of the role].
        movement = torch.stack([role.logsumexp(1) for role in fits]).sum(0).softmax(0)
        found = torch.zeros(len(targets), CODES)
        for (codes, plays), role in zip(self.roles, fits, strict=True):
            likely = movement[:, None] * role.softmax(1)
            found[:, codes.start : codes.stop] = plays[:, targets].T @ likely
        return found.clamp(1e-12, 1).log()  # Sums of rounded shares may be above 1.


def least_loss(rules: World, ratio: float, count: int) -> float:
    """Returns the mean cross-entropy of masked tokens of held-out videos, by the exact model."""
    tokens = torch.from_numpy(rules.draw(count, seed=HELD_OUT_SEED)).flatten(1)
    order = torch.rand(tokens.shape, generator=Generator().manual_seed(0)).argsort(1)
    split = split_positions(order, num_masked=round(ratio * tokens.shape[1]))
    known, hidden = (tokens.gather(1, at) for at in (split.context, split.targets))
    logits = ExactModel(rules)(known, split.context, split.targets)
    return abs(float(logits.gather(2, hidden[..., None]).mean()))


def sample_exactly(rules: World, calls: int, count: int) -> dict[str, float]:
    """Judges samples of the default sampler that asks the exact model so often."""
    config = SampleConfig(draft_steps=calls)
    drawn = sample(ExactModel(rules), rules.grid, config, numbers=range(count))
    return judge(rules, drawn.view(count, *rules.grid).numpy())


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, required=True)
    parser.add_argument("--videos", type=int, default=64, help="held-out ones, and samples")
    options = parser.parse_args()
    if options.videos < 1:
        parser.error(f"--videos must be at least 1, got {options.videos}.")
    rules = world(options.world)
    for ratio in RATIOS:
        print(f"{ratio:4.0%} masked: loss {least_loss(rules, ratio, options.videos):.4f}")
    for calls in CALLS:
        found = sample_exactly(rules, calls, options.videos)
        print(
            f"{calls:4} calls: lawful {found['lawful']:6.1%}  distance {found['distance']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    tune_process()
    main()
