"""Bytes of a token store, foretold from some of its tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.forecast.store_size import (
    bits_of_token,
    bytes_beside_tokens,
    bytes_of_tokens,
    most_bytes_of_tokens,
    sampled_rows,
)
from pipeline.frame_list import SOURCE_SCHEMA
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.writer import create_store

INFO = StoreInfo(
    tokenizer="0" * 64,
    codebook_size=300,
    grid=(2, 3, 5),
    source="frames",
    counts={"train": 300, "test": 40},
    shard_windows=64,
    chunk_windows=16,
)


def tokens_of(split: str, *, seed: int = 0) -> np.ndarray:
    """Windows that go on from one another, as those of videos do."""
    draw = np.random.default_rng([seed, len(split)])
    count = INFO.counts[split]
    tokens = np.repeat(draw.integers(300, size=(count // 4 + 1, *INFO.grid)), 4, axis=0)[:count]
    changed = draw.random(tokens.shape) < 0.2
    return np.where(changed, draw.integers(300, size=tokens.shape), tokens)


def written(root: Path) -> tuple[int, int]:
    """Makes a store; returns the bytes of its shards, and of all else."""
    plan = numbered_plan(INFO.counts, "w", INFO.shard_windows)
    rows = [{"split": "train", "video": "v", "frame": f"v_{n}.png", "bytes": n} for n in range(99)]
    frames = pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)
    writer = create_store(root, INFO, plan, source=frames)
    for split, shard in INFO.shards():
        writer.write_shard(split, shard, tokens_of(split)[slice(*INFO.shard_rows(split, shard))])
    sizes = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    shards = sum(size for path, size in sizes.items() if "c" in path.relative_to(root).parts)
    beside = bytes_beside_tokens(INFO, plan, frames)
    assert sum(sizes.values()) - shards == pytest.approx(beside, abs=16 * (len(sizes) + 1))
    return shards, sum(sizes.values())


def test_a_few_chunks_tell_the_bytes_of_all(tmp_path: Path) -> None:
    shards, _ = written(tmp_path)
    rows = sampled_rows(INFO)
    assert sum(len(part) for _, part in rows) < 260
    chunks = [(split, tokens_of(split)[part.start : part.stop]) for split, part in rows]
    assert bytes_of_tokens(INFO, chunks) == pytest.approx(shards, rel=0.1)


def test_random_tokens_are_the_most(tmp_path: Path) -> None:
    shards, _ = written(tmp_path)
    most = most_bytes_of_tokens(INFO)
    assert shards < most
    assert 8 < bits_of_token(INFO, most) < 16  # log2 of 300 is 8.2.


def test_a_split_without_a_chunk_is_taken_to_be_like_the_other() -> None:
    train = [("train", tokens_of("train")[:32])]
    only = StoreInfo(**{**vars(INFO), "counts": {"train": 300}})
    more = bytes_of_tokens(INFO, train) - bytes_of_tokens(only, train)
    index = 4 * 16 + 4
    assert more == pytest.approx(
        (bytes_of_tokens(only, train) - 5 * index) * 40 / 300 + index, 0.02
    )


def test_chunks_are_whole_spread_and_of_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.forecast.store_size.SAMPLED", 1)
    rows = sampled_rows(INFO)
    assert [split for split, _ in rows] == ["train"] * 3 + ["test"]
    assert rows[0] == ("train", range(16)) and rows[-1] == ("test", range(32, 40))
