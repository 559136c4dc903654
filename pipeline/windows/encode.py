"""frames -> tokens: decode ahead, encode in batches that fit the memory, write shards behind."""

import itertools
import math
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

from pipeline.background import background_writer
from pipeline.device import send
from pipeline.errors import PipelineError
from pipeline.frames.damage import decode as decode_frames
from pipeline.frames.films import EXTRACT, FilmFrame
from pipeline.frames.images import FrameFile
from pipeline.frames.scan import Video
from pipeline.frames.workers import decoders
from pipeline.pixels import to_model
from pipeline.size import Size, sides
from pipeline.storage.files import printable
from pipeline.store.given import StatesOf, no_states
from pipeline.store.layout import StoreInfo
from pipeline.store.update import Known
from pipeline.store.writer import StoreWriter

Encode = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Turns windows [B, T, H, W, 3] into tokens [B, t, h, w]."""

PIECE_BYTES = 1 << 26
"""Most that is decoded in one go, unless one window needs more: 1,300 frames of 128x128 pixels."""
TIMES_OVER = 8
"""How often a film is decoded, at most, without a word."""
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
    most = PIECE_BYTES // (3 * math.prod(sides(info.size))) - int(offsets[-1])
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


def decoded_anew(videos: Sequence[Video], size: Size) -> str | None:
    """Says which films take long: each piece of one is decoded from its begin, unlike of images."""
    at_once = PIECE_BYTES // (3 * math.prod(sides(size)))
    long = [
        video
        for video in videos
        if isinstance(video.frames[0], FilmFrame)
        and len(video.frames) > (2 * TIMES_OVER - 1) * at_once
    ]
    if not long:
        return None
    longest = max(long, key=lambda video: len(video.frames))
    times = (math.ceil(len(longest.frames) / at_once) + 1) // 2
    others = f" and {len(long) - 1} more videos" if long[1:] else ""
    return (
        f"{printable(longest.name)}{others}: each {at_once:,} frames are decoded from the begin of "
        f"their film, of its {len(longest.frames):,} about {times} times over; {EXTRACT}, once"
    )


def decode_ahead(
    pool: Executor,
    pieces: Iterable[Piece],
    *,
    size: Size,
    ahead: int,
    damaged: list[str],
    as_stored: bool = False,
) -> Iterator[NDArray[np.uint8] | None]:
    """Yields every window [T, H, W, 3] of the pieces in order.

    While the caller works on one, the `pool` decodes the next `ahead` pieces. For each window of a
    piece with frames that cannot be used it yields None; what is wrong is added to `damaged`.
    """
    read = partial(decode_frames, size=size, as_stored=as_stored)
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


class BackoffEncoder:
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
    states: StatesOf = no_states,
) -> Encoded:
    """Encodes these shards from their frames; writes each as soon as it is whole.

    `advance` is told of each batch: every `batch_size` windows of a shard, and its rest. Batches of
    which every window is `known` are not encoded. `states` are kept beside the tokens. Shards with
    frames that cannot be used are left out; the others are made all the same.
    """
    info, size = writer.info, writer.info.size
    assert size
    done = Encoded()
    plans = {split: writer.store.plan(split) for split in info.counts}
    rows = [_Rows.of(*shard, info, known, batch_size) for shard in shards]
    pieces = itertools.chain.from_iterable(
        cut_pieces(plans[r.split].slice(r.start, len(r.new)).filter(r.new), videos, info)
        for r in rows
    )
    fitting = BackoffEncoder(encode, batch_size)
    with decoders(workers) as pool, background_writer(writer.write_shard, at_most=1) as write:
        windows = decode_ahead(
            pool,
            pieces,
            size=size,
            ahead=2 * max(1, workers),
            damaged=done.damaged,
            as_stored=info.as_stored,
        )
        for (split, shard), its in zip(shards, rows, strict=True):
            tokens = its.known_tokens(known, info.grid)
            if _encode_new(its, tokens, windows, fitting, batch_size, advance, done):
                write(split, shard, tokens, states(split, shard))
    return done


@dataclass(frozen=True)
class _Rows:
    """The rows of a shard, and which of them are to be encoded."""

    split: str
    start: int
    new: NDArray[np.bool_]
    """Whole batches, so that tokens round alike whichever are known."""

    @classmethod
    def of(
        cls, split: str, shard: int, info: StoreInfo, known: Known | None, batch_size: int
    ) -> "_Rows":
        start, stop = info.shard_rows(split, shard)
        new = np.ones(stop - start, bool)
        if known is not None:
            new = ~known.has(split, start, stop)
            for first in range(0, len(new), batch_size):
                new[first : first + batch_size] = new[first : first + batch_size].any()
        return cls(split, start, new)

    def known_tokens(self, known: Known | None, grid: tuple[int, ...]) -> NDArray[np.int64]:
        """Returns the tokens [n, t, h, w] that are known; of those that are not, anything."""
        if known is None or self.new.all():
            return np.zeros((len(self.new), *grid), np.int64)
        return known.read(self.split, self.start, self.start + len(self.new))


def _encode_new(
    rows: _Rows,
    tokens: NDArray[np.int64],
    windows: Iterator[NDArray[np.uint8] | None],
    encode: BackoffEncoder,
    batch_size: int,
    advance: Callable[[int], None],
    done: Encoded,
) -> bool:
    """Encodes the new rows of a shard from the next `windows`, into `tokens`.

    Returns whether all are there: after a window whose frames are damaged no more are encoded.
    """
    whole = True
    for first in range(0, len(tokens), batch_size):
        batch = slice(first, min(first + batch_size, len(tokens)))
        count = batch.stop - first
        if rows.new[first]:
            pixels = [x for x in itertools.islice(windows, count) if x is not None]
            whole = whole and len(pixels) == count
            if whole:
                tokens[batch] = encode(np.stack(pixels))
                done.encoded += count
        else:
            done.taken += count
        advance(count)
    return whole
