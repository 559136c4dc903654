"""A small store of windows in memory, and samples beside it."""

import numpy as np
import pyarrow as pa

from pipeline.evaluation.sets import ComparedSets, choose_windows
from tests.helpers.memory_store import MemoryStore

K, GRID = 11, (2, 3, 5)
FRAMES, SIZE = 4, 12


def store_of(tokens, videos=None, **given) -> MemoryStore:
    info = {"codebook_size": K, "grid": GRID, "tokenizer": "aa", "source": ""}
    window = {"frames": FRAMES, "stride": 1, "size": SIZE}
    plans = {
        split: pa.table({"video": names, "first_frame": list(range(len(names)))})
        for split, names in (videos or {}).items()
    }
    return MemoryStore(tokens, plans, **{**info, **window, **given})


def draw(count, *, seed=0, tokens=K) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, tokens, (count, *GRID), dtype=np.uint16)


def small_store() -> MemoryStore:
    """Makes three test windows of each of eight videos."""
    videos = [f"v{i % 8}" for i in range(24)]
    return store_of({"train": draw(30), "test": draw(24, seed=1)}, {"test": videos})


def choose(store, samples=None, *, split="test", limit=6) -> ComparedSets:
    return choose_windows(store, samples, split=split, limit=limit, seed=0)
