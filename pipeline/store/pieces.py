"""Rows too long to be drawn at one go: their pieces lie beside the store until it has the shard.

Each piece is a file of its own, written whole or not at all: the latent frames since the piece
before, and what the next ones depend on. Files begin with a SHA-256 of their bytes and of what they
are pieces of, so none is taken for another's. They go when the shard is finished.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import TokenStoreError
from pipeline.store.claims import Share
from pipeline.store.layout import REDO
from pipeline.store.reader import TokenStore

PIECE_FRAMES = 16
"""Latent frames of a piece, at least: what a kill may cost."""
SUFFIX = ".pieces"
DIGEST = 32
"""Bytes at the beginning of a file."""
TOKENS, STATE = "tokens", "state."


class Stream(Protocol):
    """Rows that are made a few latent frames at a time."""

    made: int
    context: int

    def __iter__(self) -> Iterator[Tensor]: ...
    def sizes(self) -> list[int]: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor], last: Tensor) -> None: ...


@dataclass(frozen=True)
class Pieces:
    """What there is so far of rows that are drawn together."""

    store: TokenStore
    folder: str
    rows: range
    device: str
    """Kind of device that draws them: generators of another have other states."""

    @property
    def total(self) -> int:
        """Latent frames of a row."""
        return self.store.grid[0]

    @property
    def _key(self) -> str:
        return f"{self.rows.start:07d}-{self.rows.stop:07d}-{self.device}"

    def _name(self, number: int) -> str:
        return f"{self.folder}/{self._key}-{number:07d}"

    def _digest(self, number: int, payload: bytes) -> bytes:
        whose = f"{self.store.fingerprint} {self._name(number)} "
        return hashlib.sha256(whose.encode() + payload).digest()

    def add(self, number: int, frames: NDArray[Any], state: Mapping[str, Tensor]) -> None:
        """Writes latent frames [B n h w], and what the next ones depend on."""
        tensors = {TOKENS: torch.from_numpy(frames.astype(np.int32))}
        tensors |= {STATE + name: tensor.contiguous() for name, tensor in state.items()}
        payload = save(tensors)
        self.store.files.write(self._name(number), self._digest(number, payload) + payload)

    def read(self, number: int) -> dict[str, Tensor]:
        """Returns a piece. Raises ValueError if it is not as it was written."""
        data = self.store.files.read(self._name(number))
        if data[:DIGEST] != self._digest(number, data[DIGEST:]):
            raise ValueError("its bytes are not those that were written")
        try:
            tensors = load(data[DIGEST:])
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        if TOKENS not in tensors or not self._fits(tensors[TOKENS]):
            raise ValueError("it holds no tokens of these rows")
        return tensors

    def _fits(self, tokens: Tensor) -> bool:
        shape, (_, h, w) = tokens.shape, self.store.grid
        fits = tokens.ndim == 4 and (shape[0], *shape[2:]) == (len(self.rows), h, w) and shape[1]
        return bool(fits) and 0 <= int(tokens.min()) <= int(tokens.max()) < self.store.codebook_size

    def resume(self, begin: Callable[[range], Stream]) -> tuple[Stream, int]:
        """Returns a stream that goes on behind the pieces there are, and how many these are.

        What is damaged is said and made again, with all that follows it.
        """
        stream, number, frames = begin(self.rows), 0, 0
        piece: dict[str, Tensor] = {}
        last = torch.zeros(len(self.rows), 0, *self.store.grid[1:], dtype=torch.int64)
        there = set(self.store.files.names(self.folder))
        try:
            while self._name(number).rpartition("/")[2] in there:
                piece = self.read(number)
                frames, number = frames + piece[TOKENS].shape[1], number + 1
                last = torch.cat([last, piece[TOKENS]], dim=1)[:, -stream.context :].clone()
        except (ValueError, FileNotFoundError) as error:
            self._say_lost(number, error, "from there on")
        if not number:
            return stream, 0
        try:
            state = {x.removeprefix(STATE): piece[x] for x in piece if x.startswith(STATE)}
            stream.restore(state, last)
            if stream.made != frames:
                raise ValueError(f"it counts {stream.made} latent frames, but there are {frames}")
        except ValueError as error:
            self._say_lost(number - 1, error, "from the start")
            return begin(self.rows), 0
        return stream, number

    def _say_lost(self, number: int, error: Exception, since: str) -> None:
        path = self.store.files.place(self._name(number))
        said = f"{path} is damaged: {error}; its samples are drawn again {since}"
        print(said, file=sys.stderr, flush=True)

    def whole(self, count: int) -> NDArray[Any]:
        """Returns the tokens [B T h w] of all pieces, in the type of the store."""
        tokens = np.empty((len(self.rows), *self.store.grid), self.store.info.dtype)
        begin = 0
        for number in range(count):
            try:
                piece = self.read(number)[TOKENS].numpy()
            except (ValueError, FileNotFoundError) as error:
                path = self.store.files.place(self._name(number))
                raise TokenStoreError(f"{path} is damaged: {error}; {REDO}.") from None
            tokens[:, begin : begin + piece.shape[1]] = piece
            begin += piece.shape[1]
        assert begin == tokens.shape[1]
        return tokens


def folder_of(split: str, shard: int) -> str:
    """Names the folder of a shard's pieces, below its store."""
    return f"{split}-{shard:05d}{SUFFIX}"


def remove_finished(store: TokenStore) -> None:
    """Deletes pieces of shards that are there, which a kill can leave behind."""
    missing = {folder_of(*shard) for shard in store.missing()}
    for name in store.files.names():
        if name.endswith(SUFFIX) and name not in missing:
            store.files.remove(name)


def fill_shards(
    share: Share, begin: Callable[[range], Stream], batch_size: int, device: str
) -> int:
    """Makes the rows of this process's shards; returns in how many batches.

    `begin` makes the stream of some rows, whose parts are the steps of `share`. Of more than one
    step, what is made lies in pieces until the shard is written: memory grows by the shard's tokens
    alone, which are two bytes each of most codebooks.
    """
    batches = 0
    for split, shard in share.shards:
        rows = range(*share.writer.info.shard_rows(split, shard))
        folder, parts = folder_of(split, shard), []
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            if len(share.steps) == 1:
                (made,) = begin(some)
                parts.append(made.cpu().numpy())
                share.advance(len(some) * share.steps[0])
            else:
                pieces = Pieces(share.writer.store, folder, some, device)
                parts.append(pieces.whole(_draw(pieces, begin, share)))
            batches += 1
        share.writer.write_shard(split, shard, np.concatenate(parts))
        share.writer.files.remove(folder)
    return batches


def _draw(pieces: Pieces, begin: Callable[[range], Stream], share: Share) -> int:
    """Draws what is missing of some rows; returns how many pieces there are then."""
    stream, number = pieces.resume(begin)
    count, steps = len(pieces.rows), iter(share.steps)
    for so_far in itertools.accumulate(stream.sizes()):
        if so_far <= stream.made:
            share.advance(0, known=count * next(steps))
    waiting: list[Tensor] = []
    for frames in stream:
        waiting.append(frames)
        if sum(x.shape[1] for x in waiting) >= PIECE_FRAMES or stream.made == pieces.total:
            pieces.add(number, torch.cat(waiting, dim=1).cpu().numpy(), stream.state())
            number += 1
            waiting.clear()
        share.advance(count * next(steps))
    return number
