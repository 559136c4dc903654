"""How many windows a second of one core `pipeline.store.batches` deals out, beside memory's speed.

Run it from the repository's root: `python -m benchmarks.batches`. Windows are 16 frames of 128x128,
1,024 tokens each, and random: the worst case for the store's compression. Seconds are those of the
processor, so the store's files come from memory, and others who use the machine do not count.
The rows take turns, round by round.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.store.batches import Batches
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store

GRID, CODEBOOK = (4, 16, 16), 16_384
ROUNDS = 5
"""The best of so many is shown: others may be using the machine's caches."""
Draw = Callable[[np.random.Generator, int, tuple[int, int, int, int]], NDArray[np.int64]]
WINDOW_BYTES = int(np.prod(GRID)) * (2 + 8)
"""Read as 16 bits a token, written as 64."""


def draw_evenly(
    generator: np.random.Generator, codebook_size: int, shape: tuple[int, int, int, int]
) -> NDArray[np.int64]:
    """Draws tokens [n t h w], each as likely as any other: nothing to compress."""
    return generator.integers(codebook_size, size=shape)


def make_store(
    root: Path,
    windows: int,
    grid: tuple[int, int, int] = GRID,
    codebook_size: int = CODEBOOK,
    draw: Draw = draw_evenly,
) -> TokenStore:
    """Writes a store of random tokens."""
    info = StoreInfo(
        tokenizer=None, codebook_size=codebook_size, grid=grid, source="", counts={"train": windows}
    )
    writer = create_store(root, info, numbered_plan(info.counts, "w", info.shard_windows))
    generator = np.random.default_rng(0)
    for split, shard in info.shards():
        start, stop = info.shard_rows(split, shard)
        tokens = draw(generator, codebook_size, (stop - start, *grid))
        writer.write_shard(split, shard, tokens)
    return TokenStore(root)


def fastest(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the fewest seconds of one core that each took, over all its threads."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            began = time.process_time()
            action()
            seconds[name].append(time.process_time() - began)
    return {name: min(taken) for name, taken in seconds.items()}


def memory_speed() -> float:
    """Returns the bytes a second that one core reads and writes when it copies 256 MB."""
    source = np.ones(1 << 28, dtype=np.uint8)
    target = np.zeros_like(source)
    (seconds,) = fastest({"copy": lambda: np.copyto(target, source)}).values()
    return 2 * source.nbytes / seconds


def main() -> None:
    """Prints the speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "tokens", options.windows)

        def epoch(memory_gb: float, stream: Batches | None = None) -> None:
            stream = stream or Batches(
                store, "train", batch_size=options.batch_size, seed=0, memory_gb=memory_gb
            )
            for step in range(options.windows // options.batch_size):
                stream.tokens(step)

        kept = Batches(store, "train", batch_size=options.batch_size, seed=0)
        epoch(0, kept)

        seconds = fastest(
            {
                "tokens kept in memory": lambda: epoch(0, kept),
                "first epoch: shards are read, checked and decoded": lambda: epoch(4.0),
                "two shards in memory: so in every epoch": lambda: epoch(1e-9),
            }
        )
    limit = memory_speed()
    print(f"one core copies memory at {limit / 1e9:.1f} GB/s, read and written")
    dealt = options.windows // options.batch_size * options.batch_size
    for name, taken in seconds.items():
        speed = dealt / taken
        print(f"{speed:10,.0f} windows/s, {speed * WINDOW_BYTES / limit:4.0%} of that  ({name})")


if __name__ == "__main__":
    main()
