"""frames -> tokens: decode ahead, encode in batches that fit the memory, write shards behind."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.background import behind
from pipeline.device import send
from pipeline.errors import PipelineError
from pipeline.frames.damage import decode
from pipeline.frames.images import FrameFile
from pipeline.frames.scan import Video
from pipeline.frames.workers import decoders
from pipeline.pixels import to_model
from pipeline.store.layout import StoreInfo
from pipeline.store.update import Known
from pipeline.store.writer import StoreWriter

Encode = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Turns windows [B, T, H, W, 3] into tokens [B, t, h, w]."""

PIECE_BYTES = 1 << 26
"""Most that is decoded in one go, unless one window needs more: 1,300 frames of 128x128 pixels."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What torch says, beside MemoryError, when there is none left on a GPU or a CPU."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring windows of one video, and each frame that they need once."""

    frames: list[FrameFile]
    windows: NDArray[np.intp]
    """Which of the frames make up each window [n, T]."""


def cut_pieces(plan: pa.Table, videos: Sequence[Video], info: StoreInfo) -> Iterator[Piece]:
    """Cuts the windows of `plan`, in their order, into pieces of at most `PIECE_BYTES`."""
    assert info.frames and info.stride and info.size, "tokens made from frames know their window"
    offsets = np.arange(info.frames) * info.stride
    most = PIECE_BYTES // (3 * info.size**2) - int(offsets[-1])
    known = {(video.split, video.name): video for video in videos}
    rows = zip(*(plan[key].to_pylist() for key in ("split", "video", "first_frame")), strict=True)
    for (split, name), group in itertools.groupby(rows, key=lambda row: row[:2]):
        starts = np.asarray([first for _, _, first in group])
        while len(starts):
            count = max(1, int(np.sum(starts < starts[0] + most)))
            needed = starts[:count, None] + offsets
            numbers, windows = np.unique(needed, return_inverse=True)
            frames = known[split, name].frames
            yield Piece([frames[n] for n in numbers], windows.reshape(needed.shape))
            starts = starts[count:]


def decode_ahead(
    pool: Executor,
    pieces: Iterable[Piece],
    *,
    size: int,
    ahead: int,
    damaged: list[str],
    as_stored: bool = False,
) -> Iterator[NDArray[np.uint8] | None]:
    """Yields every window [T, size, size, 3] of the pieces in order.

    While the caller works on one, the `pool` decodes the next `ahead` pieces. For each window of a
    piece with frames that cannot be used it yields None; what is wrong is added to `damaged`.
    """
    read = partial(decode, size=size, as_stored=as_stored)
    begun = ((piece, pool.submit(read, piece.frames)) for piece in pieces)
    waiting = deque(itertools.islice(begun, ahead + 1))
    while waiting:
        piece, decoded = waiting.popleft()
        pixels = decoded.result()
        waiting.extend(itertools.islice(begun, 1))
        if isinstance(pixels, list):
            damaged += pixels
        for window in piece.windows:
            yield None if isinstance(pixels, list) else pixels[window]


def encoder_of(model: nn.Module, *, half: bool = False) -> Encode:
    """Returns `model.encode`, of videos [B 3 T H W], as a function of bytes on any device.

    With `half` its convolutions compute in bfloat16.
    """

    @torch.inference_mode()
    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        # Bytes travel to a GPU, not floats: they are a quarter.
        sent = send(torch.from_numpy(pixels), next(model.parameters()).device)
        with torch.autocast(sent.device.type, torch.bfloat16, enabled=half):
            tokens: NDArray[np.int64] = cast(Any, model).encode(to_model(sent)).cpu().numpy()
        return tokens

    return encode


def _tokens_if_they_fit(encode: Encode, pixels: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    try:
        return encode(pixels)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(s in str(error) for s in OUT_OF_MEMORY):
            raise
    torch.cuda.empty_cache()  # Only now, when the error no longer holds on to what was computed.
    return None


class FittingEncoder:
    """Encodes at most so many windows at once, and halves the number when memory runs out."""

    def __init__(self, encode: Encode, at_once: int) -> None:
        self.encode, self.at_once = encode, at_once

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Returns tokens [B, t, h, w]. Raises PipelineError if even one window does not fit."""
        parts: list[NDArray[np.int64]] = []
        first = 0
        while first < len(pixels):
            batch = pixels[first : first + self.at_once]
            tokens = _tokens_if_they_fit(self.encode, batch)
            if tokens is not None:
                parts.append(tokens)
                first += len(batch)
            elif len(batch) == 1:
                shape = "x".join(map(str, pixels.shape[1:4]))
                raise PipelineError(
                    f"there is not enough memory to encode one window of {shape} (frames, height, "
                    "width); use a device with more, or smaller windows."
                )
            else:
                self.at_once = len(batch) // 2
                said = f"out of memory with {len(batch)} windows; going on with {self.at_once}"
                print(said, file=sys.stderr, flush=True)
        return np.concatenate(parts)


@dataclass
class Encoded:
    """What `encode_shards` did."""

    encoded: int = 0
    """Windows that went through the model."""
    taken: int = 0
    """Windows whose tokens were known."""
    damaged: list[str] = field(default_factory=list)
    """What is wrong with frames that cannot be used, a line each."""


def encode_shards(
    writer: StoreWriter,
    shards: Sequence[tuple[str, int]],
    videos: Sequence[Video],
    encode: Encode,
    *,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None],
    known: Known | None = None,
) -> Encoded:
    """Encodes these shards from their frames; writes each as soon as it is whole.

    `advance` is told of each batch: every `batch_size` windows of a shard, and its rest. Batches of
    which every window is `known` are not encoded. Shards with frames that cannot be used are left
    out; the others are made all the same.
    """
    info, size = writer.info, writer.info.size
    assert size
    done = Encoded()
    plans = {split: writer.store.plan(split) for split in info.counts}
    spans = [(split, shard, *info.shard_rows(split, shard)) for split, shard in shards]
    pieces = itertools.chain.from_iterable(
        cut_pieces(
            plans[split]
            .slice(start, stop - start)
            .filter(_new(known, split, start, stop, batch_size)),
            videos,
            info,
        )
        for split, _, start, stop in spans
    )
    fitting = FittingEncoder(encode, batch_size)
    with decoders(workers) as pool, behind(writer.write_shard, at_most=1) as write:
        windows = decode_ahead(
            pool,
            pieces,
            size=size,
            ahead=2 * max(1, workers),
            damaged=done.damaged,
            as_stored=info.as_stored,
        )
        for split, shard, start, stop in spans:
            new = _new(known, split, start, stop, batch_size)
            tokens = np.zeros((stop - start, *info.grid), np.int64)
            if known is not None and not new.all():
                tokens = known.read(split, start, stop)
            whole = True
            for first in range(0, stop - start, batch_size):
                batch = slice(first, min(first + batch_size, stop - start))
                count = batch.stop - first
                if not new[first]:
                    done.taken += count
                else:
                    drawn = list(itertools.islice(windows, count))
                    pixels = [window for window in drawn if window is not None]
                    whole = whole and len(pixels) == count
                    if whole:
                        tokens[batch] = fitting(np.stack(pixels))
                        done.encoded += count
                advance(count)
            if whole:
                write(split, shard, tokens)
    return done


def _new(
    known: Known | None, split: str, start: int, stop: int, batch_size: int
) -> NDArray[np.bool_]:
    """Says which of these rows are to be encoded: whole batches, so that they round alike."""
    new = np.ones(stop - start, bool)
    if known is not None:
        new = ~known.has(split, start, stop)
        for first in range(0, len(new), batch_size):
            new[first : first + batch_size] = new[first : first + batch_size].any()
    return new
