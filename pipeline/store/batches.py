"""The global order of training batches, a pure function of (token store, seed, step)."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Generator, Tensor

from pipeline.store.reader import TokenStore

Balance = Literal["window", "video"]


@dataclass(frozen=True)
class _Epoch:
    """One pass: shards in the order of this epoch, cut into groups that fit the memory."""

    number: int
    groups: Sequence[NDArray[np.int64]]
    edges: NDArray[np.int64]
    """Batch rows before each group, and of all groups."""


class Batches:
    """Deals out the windows of one split, shuffled anew in every epoch.

    The stream of global batches depends on the store, the seed and the step alone: any number of
    processes sees the same batches, and a run that goes on at step n reads nothing before it. An
    epoch goes through the shards in random order; as many as half of the memory budget holds are
    shuffled together, all of them if the whole split fits.

    `balance` window: each window once per epoch. `video`: each video once per epoch, by a window
    drawn at random, as the published loader does.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        *,
        batch_size: int,
        seed: int,
        memory_gb: float = 4.0,
        balance: Balance = "window",
    ) -> None:
        self.store, self.split = store, split
        self.batch_size, self.seed, self.balance = batch_size, seed, balance
        info = store.info
        num_shards = store.num_shards(split)
        shard_bytes = info.shard_windows * int(np.prod(info.grid)) * info.dtype.itemsize
        fitting = max(1, int(memory_gb * 2**30 / shard_bytes))
        everything = num_shards <= fitting
        self.group_shards = num_shards if everything else max(1, fitting // 2)
        self.kept_shards = num_shards if everything else max(2, fitting)
        self._shards: OrderedDict[int, NDArray[np.unsignedinteger[Any]]] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()
        self._epoch: _Epoch | None = None
        if balance == "video":
            videos = store.plan(split)["video"].combine_chunks().dictionary_encode()
            codes = videos.indices.to_numpy()
            # Windows of a video are neighbours; one that reaches into the next shard belongs to
            # the shard where it begins, so that no group counts it twice.
            self._first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
            self._last = np.r_[self._first[1:], len(codes)]
        self.epoch_length = len(self._first) if balance == "video" else store.num_windows(split)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Returns the rows of the split that make up the global batch of a step."""
        position, left = step * self.batch_size, self.batch_size
        parts = []
        while left:
            number, offset = divmod(position, self.epoch_length)
            epoch = self._plan_epoch(number)
            group = int(np.searchsorted(epoch.edges, offset, side="right")) - 1
            order = self._order(epoch, group)
            part = order[offset - epoch.edges[group] :][:left]
            parts.append(part)
            position += len(part)
            left -= len(part)
        return np.concatenate(parts)

    def own_rows(self, step: int, *, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """Returns the rows of this process's part of the global batch."""
        if self.batch_size % world_size:
            raise ValueError(f"a batch of {self.batch_size} is not for {world_size} processes.")
        share = self.batch_size // world_size
        return self.rows(step)[rank * share : (rank + 1) * share]

    def tokens(self, step: int, *, rank: int = 0, world_size: int = 1) -> Int[Tensor, "B N"]:
        """Returns this process's part of the global batch, windows flattened to N tokens."""
        rows = self.own_rows(step, rank=rank, world_size=world_size)
        tokens = np.empty((len(rows), *self.store.info.grid), dtype=np.int64)
        shards, places = np.divmod(rows, self.store.info.shard_windows)
        for window, shard, place in zip(tokens, shards.tolist(), places.tolist(), strict=True):
            window[:] = self._shard(shard)[place]
        return torch.from_numpy(tokens.reshape(len(rows), -1))

    def names(self, step: int) -> list[str]:
        """Returns what the windows of a step's global batch are called: video and first frame."""
        plan = self.store.plan(self.split).take(self.rows(step))
        columns = (plan["video"].to_pylist(), plan["first_frame"].to_pylist())
        return [f"{video} from frame {frame}" for video, frame in zip(*columns, strict=True)]

    def _generator(self, *what: object) -> Generator:
        text = " ".join(map(str, (self.store.fingerprint, self.split, self.seed, *what)))
        digest = hashlib.sha256(text.encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _plan_epoch(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            num_shards = self.store.num_shards(self.split)
            order = torch.randperm(num_shards, generator=self._generator("shards", number)).numpy()
            groups = [
                order[start : start + self.group_shards]
                for start in range(0, num_shards, self.group_shards)
            ]
            sizes = [sum(self._size(int(shard)) for shard in group) for group in groups]
            self._epoch = _Epoch(number, groups, np.cumsum([0, *sizes]))
        return self._epoch

    def _size(self, shard: int) -> int:
        start, stop = self.store.shard_rows(self.split, shard)
        return len(self._videos(shard)) if self.balance == "video" else stop - start

    def _videos(self, shard: int) -> NDArray[np.int64]:
        """Returns the videos that begin in a shard."""
        start, stop = self.store.shard_rows(self.split, shard)
        return np.flatnonzero((self._first >= start) & (self._first < stop))

    def _order(self, epoch: _Epoch, group: int) -> NDArray[np.int64]:
        """Returns the rows of one group in the order of the stream."""
        key = (epoch.number, group)
        if key not in self._orders:
            shards = [int(shard) for shard in epoch.groups[group]]
            generator = self._generator("windows", epoch.number, group)
            if self.balance == "video":
                rows = self._draw_windows(shards, generator)
            else:
                rows = np.concatenate(
                    [np.arange(*self.store.shard_rows(self.split, shard)) for shard in shards]
                )
            self._orders[key] = rows[torch.randperm(len(rows), generator=generator).numpy()]
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[key]

    def _draw_windows(self, shards: Sequence[int], generator: Generator) -> NDArray[np.int64]:
        """Draws one window of each video that begins in these shards."""
        videos = np.concatenate([self._videos(shard) for shard in shards])
        first, count = self._first[videos], self._last[videos] - self._first[videos]
        drawn = torch.rand(len(videos), generator=generator, dtype=torch.float64).numpy()
        rows: NDArray[np.int64] = first + (drawn * count).astype(np.int64)
        return rows

    def _shard(self, shard: int) -> NDArray[np.unsignedinteger[Any]]:
        if shard in self._shards:
            self._shards.move_to_end(shard)
        else:
            self._shards[shard] = self.store.read_shard(self.split, shard)
            if len(self._shards) > self.kept_shards:
                self._shards.popitem(last=False)
        return self._shards[shard]
