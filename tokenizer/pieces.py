"""Long token grids -> frames, a piece in time after the other, in constant memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tokenizer.config import VQGANConfig
from tokenizer.layers import Past
from tokenizer.vqgan import VQGAN
from tokenizer.weights import Tokenizer, TokenizerConfig

BEFORE = 24
"""Latent frames before a piece that tokenizers of others, which keep no past, decode once more. Of
a small VidTok of random weights one value in 200 then differs by more than a hundredth of the
range, with 8 every second one."""


@dataclass(frozen=True)
class Piece:
    """Latent frames `start` … `stop` go through the decoder, `first` … `last` are kept of them."""

    start: int
    stop: int
    first: int
    last: int


def decoder_reach(config: VQGANConfig) -> int:
    """Returns how many latent frames to either side a frame of the video may depend on.

    Besides, with norm `group`, each depends a little on all, by their mean and variance.
    """
    reach = 1  # Frames to either side, from the last layer back to the first.
    for stride, _, _ in reversed(config.strides):
        reach += 4  # Two residual blocks of two convolutions.
        reach = -(-reach // stride) + (1 if stride > 1 else 2)
    return reach


def overlap_of(config: TokenizerConfig) -> tuple[int, int]:
    """Returns the latent frames before and behind a piece that are decoded with it."""
    if isinstance(config, VQGANConfig):
        return (0, 0) if config.causal else (decoder_reach(config),) * 2
    return BEFORE, 0


def num_frames_of(config: TokenizerConfig, latent: int) -> int:
    """Counts the frames of so many latent ones; if causal, the first of them is of one."""
    alone = int(config.causal)
    return latent and alone + (latent - alone) * config.downsample[0]


def check_pieces(config: TokenizerConfig, num_frames: int) -> None:
    """Raises ValueError if pieces of so many frames hold none but those that overlap."""
    before, behind = overlap_of(config)
    least = (before + behind + 1) * config.downsample[0]
    if num_frames < least:
        raise ValueError(
            f"pieces of {num_frames} frames are too short: those of this tokenizer overlap by "
            f"{least - config.downsample[0]}, so they need at least {least}"
        )


def cut(total: int, most: int, overlap: tuple[int, int]) -> list[Piece]:
    """Cuts `total` latent frames into pieces, so that `most` at once go through the decoder.

    Where there is an overlap all pieces have as many, `most`: what a decoder makes of a piece may
    depend a little on how long it is. `most` is more than what overlaps, or all there is.
    """
    before, behind = overlap
    pieces, first = [], 0
    while first < total:
        start = max(0, min(first - before, total - most)) if before + behind else first
        stop = min(start + most, total)
        last = total if stop == total else stop - behind
        pieces.append(Piece(start, stop, first, last))
        first = last
    return pieces


def decode_pieces(
    model: Tokenizer, tokens: Integer[Tensor, "B t h w"], *, most: int
) -> Iterator[Float[Tensor, "B C T H W"]]:
    """Yields the clips of token grids, around -0.5 … 0.5, a piece in time after the other.

    At most `most` latent frames go through the decoder at once. A causal tokenizer of ours makes
    the same of them as of the whole, to rounding, and so does one with norm `batch` or `layer`,
    whose frames depend on few latent ones to either side. With norm `group`, or a tokenizer of
    others, frames differ a little from those of the whole. Tokens may be of any type and device.
    Raises ValueError if `most` leaves no room for new frames, and there are more.
    """
    device, config = next(model.parameters()).device, model.config
    past: Past | None = None
    if tokens.shape[1] > most:
        check_pieces(config, most * config.downsample[0])
        past = {} if isinstance(config, VQGANConfig) and config.causal else None

    for piece in cut(tokens.shape[1], most, overlap_of(config)):
        part = tokens[:, piece.start : piece.stop].to(torch.int64).to(device)
        with torch.inference_mode():
            video = model.decode(part, past) if isinstance(model, VQGAN) else model.decode(part)
        if past is None:
            first, last = (
                num_frames_of(config, x - piece.start) for x in (piece.first, piece.last)
            )
            video = video[:, :, first:last]
        yield video
