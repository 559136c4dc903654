"""Numbers, how they were made, and which could not be made."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.metrics import BLANK_LEVELS, BLANK_SHARE

METRIC_DEFINITIONS = {
    "sets": "equally many windows each; the two sets of real windows share no pixel",
    "pixels": "RGB, 8 bits, as decoded from tokens; never from lossy video",
    "psnr": "of the mean squared error over all windows, frames, pixels and channels",
    "ssim": "Gaussian window 11 of sigma 1.5, K1 0.01, K2 0.03, mean over channels",
    "lpips": "version 0.1 on VGG16, of each frame; mean over all frames",
    "features": "the tokenizer's encoder before quantisation: mean over the grid; mean absolute "
    "difference of neighbours in time; the same in height and width",
    "frechet": "squared Fréchet distance of Gaussians, unbiased covariances, float64",
    "kernel": "squared MMD, polynomial kernel of degree 3, gamma 1/D, coef0 1, unbiased",
    "motion": "mean absolute difference of neighbouring frames, grey levels; Wasserstein-1",
    "blank": f"share of videos of whose values at most {BLANK_SHARE:.1%} are more than "
    f"{BLANK_LEVELS} grey levels from the mean over time of their place and channel",
    "token_distance": "total variation of the token histograms",
    "inception_score": "not offered: it needs a C3D network trained on UCF-101 and says nothing "
    "about other videos",
}


@dataclass(frozen=True)
class Missing:
    """What was not given; what needs it is not measured."""

    why: str


@dataclass
class Evaluation:
    """Numbers, how they were made, and which ones could not be made."""

    metrics: dict[str, float] = field(default_factory=dict)
    copying: dict[str, Any] = field(default_factory=dict)
    """Whether samples are copies, and of what: see `pipeline.evaluation.copying`."""
    protocol: dict[str, Any] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Takes in numbers; JSON has no word for those that are not finite: they are named."""
        for key, value in values.items():
            if math.isfinite(value):
                self.metrics[key] = float(value)
            elif key.startswith("psnr") and value > 0:
                self.not_computed[key] = "is infinite: the pictures are equal"
            else:
                self.not_computed[key] = f"is {value}: made of numbers that are not finite"

    def skip(self, keys: Iterable[str], why: str) -> None:
        """Names numbers that are not made; of several reasons the first stays."""
        self.not_computed |= {key: why for key in keys if key not in self.not_computed}
