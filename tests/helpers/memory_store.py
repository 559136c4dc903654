"""A token store that answers from memory, for tests of what reads one."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.reader import TokenStore


@dataclass
class MemoryStore:
    """Reads like `pipeline.store.reader.TokenStore`."""

    tokens: dict[str, np.ndarray]
    plans: dict[str, pa.Table]
    codebook_size: int
    grid: tuple[int, int, int]
    tokenizer: str | None = None
    source: str = ""
    made_from: pa.Table | None = None
    frames: int | None = None
    stride: int | None = None
    size: int | None = None
    fps: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    root: str = "tokens"
    fingerprint: str = "ab" * 32
    shard_windows: int = 7
    shards_read: list[tuple[str, int]] = field(default_factory=list)

    token_counts = TokenStore.token_counts

    @property
    def info(self) -> Any:
        keys = ("tokenizer", "source", "frames", "stride", "size", "extra", "codebook_size", "grid")
        keys += ("shard_windows", "fps")
        dtype = next(iter(self.tokens.values())).dtype
        known = {key: getattr(self, key) for key in keys}
        causal = bool(self.extra.get("causal"))
        return SimpleNamespace(dtype=dtype, as_stored=False, causal=causal, **known)

    @property
    def splits(self) -> list[str]:
        return list(self.tokens)

    def num_windows(self, split: str) -> int:
        return len(self.tokens[split])

    def plan(self, split: str) -> pa.Table:
        return self.plans[split]

    def num_shards(self, split: str) -> int:
        return -(-len(self.tokens[split]) // self.shard_windows)

    def shard_rows(self, split: str, shard: int) -> tuple[int, int]:
        start = shard * self.shard_windows
        return start, min(start + self.shard_windows, len(self.tokens[split]))

    def read_shard(self, split: str, shard: int) -> np.ndarray:
        self.shards_read.append((split, shard))
        return self.tokens[split][slice(*self.shard_rows(split, shard))]

    def read_windows(self, split: str, shard: int, places: np.ndarray) -> np.ndarray:
        return self.read_shard(split, shard)[places]

    def read(self, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.tokens[split][start:stop].astype(np.int64)
