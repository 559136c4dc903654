"""Bytes of pictures <-> what models see. The only place where pixel ranges change."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.device import send

Bytes = NDArray[np.uint8]


def to_model(frames: Bytes | Tensor) -> Tensor:
    """Turns bytes [..., T, H, W, 3] into float32 [..., 3, T, H, W] in -0.5 … 0.5."""
    video = torch.as_tensor(frames).movedim(-1, -4)
    return video.to(torch.float32) / 255 - 0.5


def to_bytes(video: Tensor, *, truncate: bool = False) -> Bytes:
    """Turns float [..., 3, T, H, W] around -0.5 … 0.5 into bytes [..., T, H, W, 3], rounded.

    `truncate` drops the fraction instead, as the published code does.
    """
    levels = (video.float().clamp(-0.5, 0.5) + 0.5) * 255
    levels = (levels if truncate else levels.round()).to(torch.uint8)
    array: Bytes = levels.movedim(-4, -1).cpu().numpy()
    return array


@torch.inference_mode()
def decode_tokens(model: nn.Module, tokens: NDArray[Any], *, truncate: bool = False) -> Bytes:
    """Returns the videos [B, T, H, W, 3] that a tokenizer makes of tokens [B, t, h, w].

    `truncate` is that of `to_bytes`.
    """
    sent = send(torch.from_numpy(tokens), next(model.parameters()).device)
    return to_bytes(cast(Any, model).decode(sent), truncate=truncate)


def published_bytes(frames: Bytes) -> Bytes:
    """Returns what real frames became in published measurements: 63 of 256 levels are one less."""
    return to_bytes(to_model(frames), truncate=True)
