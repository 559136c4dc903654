"""Pictures of real windows, pictures that a tokenizer makes of tokens, and what networks see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluation.numbers import Missing
from pipeline.evaluation.sets import Clip, Videos
from pipeline.pixels import to_model

FrameDistances = Callable[[Tensor, Tensor], Tensor]
"""LPIPS of pictures [B, 3, H, W] and as many others, a number for each pair."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Turns windows and tokens into pictures, and pictures into what is measured of them."""

    tokenizer: str
    """Its identity."""
    read: Callable[[str, str, int], Clip]
    """Returns the window of a split and a video that begins at a frame."""
    decode: Callable[..., Videos]
    """`pipeline.pixels.decode_tokens` of the tokenizer: tokens [B, t, h, w] to videos."""
    encoder: Callable[[Tensor], Tensor]
    """Of the tokenizer: videos to features before quantisation [B, D, t, h, w]."""
    lpips: FrameDistances | Missing
    device: str

    def real(self, split: str, places: Sequence[Mapping[str, Any]]) -> Videos:
        """Reads real windows: see `ComparedSets.places`."""
        return np.stack([self.read(split, at["video"], at["first_frame"]) for at in places])

    @torch.no_grad()
    def features(self, videos: Videos) -> Float[np.ndarray, "B D t h w"]:
        """Returns the tokenizer's features of videos."""
        features: np.ndarray = self.encoder(to_model(videos).to(self.device)).cpu().numpy()
        return features

    def perceptual(self, x: Videos, y: Videos) -> list[float]:
        """Returns the mean LPIPS of the frames of each pair of videos; none without a network."""
        if isinstance(self.lpips, Missing):
            return []
        a, b = (rearrange(to_model(v).to(self.device), "b c t h w -> (b t) c h w") for v in (x, y))
        distances: list[float] = self.lpips(a, b).reshape(len(x), -1).mean(1).tolist()
        return distances
