"""The stream of batches: a pure function of (store, seed, step), each window once per epoch."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.batches import Batches
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store
from tests.helpers.memory_store import MemoryStore

GRID = (1, 2, 2)


def make_store(root: Path, count: int, shard: int = 8) -> TokenStore:
    info = StoreInfo(
        tokenizer=None,
        codebook_size=60_000,
        grid=GRID,
        source="test",
        counts={"train": count},
        shard_windows=shard,
        chunk_windows=4,
    )
    plan = numbered_plan(info.counts, "w", shard)
    writer = create_store(root, info, plan)
    for split, number in info.shards():
        start, stop = info.shard_rows(split, number)
        rows = np.arange(start, stop).reshape(-1, 1, 1, 1)
        writer.write_shard(split, number, np.broadcast_to(rows, (stop - start, *GRID)))
    return TokenStore(root)


@st.composite
def stores(draw) -> MemoryStore:
    """Videos of random lengths; shards that divide neither them nor the whole. A window's tokens
    are the number of its row."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=20))
    videos = [f"v{number:02d}" for number, length in enumerate(lengths) for _ in range(length)]
    rows = np.arange(len(videos), dtype=np.uint16)
    frames = [place for length in lengths for place in range(length)]
    return MemoryStore(
        {"train": np.broadcast_to(rows[:, None, None, None], (len(rows), *GRID))},
        {"train": pa.table({"video": videos, "first_frame": frames})},
        codebook_size=1000,
        grid=GRID,
        shard_windows=draw(st.integers(1, 23)),
    )


def memory_gb(store: MemoryStore, shards: int) -> float:
    return (shards + 0.5) * store.shard_windows * 4 * 2 / 2**30


balances = st.sampled_from(("window", "video"))
shards_in_memory = st.integers(1, 9)
few = st.integers(1, 5)


@settings(deadline=None, max_examples=50)
@given(stores(), st.integers(1, 40), st.integers(0, 3), shards_in_memory)
def test_each_window_exactly_once_per_epoch(store, batch_size, seed, shards) -> None:
    gigabytes = memory_gb(store, shards)
    stream = Batches(store, "train", batch_size=batch_size, seed=seed, memory_gb=gigabytes)
    count, epochs = store.num_windows("train"), 3
    rows = np.concatenate([stream.rows(step) for step in range(-(-epochs * count // batch_size))])
    for epoch in range(epochs):
        part = rows[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))


@settings(deadline=None, max_examples=50)
@given(
    stores(), st.integers(1, 5), st.integers(1, 5), shards_in_memory, st.integers(0, 30), balances
)
def test_any_number_of_processes_sees_the_same_batch(
    store, ranks, share, shards, step, balance
) -> None:
    def stream() -> Batches:
        return Batches(
            store,
            "train",
            batch_size=ranks * share,
            seed=0,
            memory_gb=memory_gb(store, shards),
            balance=balance,
        )

    whole = stream().tokens(step)
    parts = [stream().tokens(step, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert [len(part) for part in parts] == [share] * ranks
    assert np.array_equal(np.concatenate(parts), whole)
    rows = stream().rows(step)
    assert np.array_equal(whole, np.repeat(rows[:, None], 4, axis=1))
    plan = store.plan("train")
    videos, frames = plan["video"].to_pylist(), plan["first_frame"].to_pylist()
    names = [f"{videos[row]} from frame {frames[row]}" for row in rows]
    assert stream().names(step) == names


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    store = MemoryStore({"train": np.zeros((9, *GRID), np.uint16)}, {}, codebook_size=3, grid=GRID)
    with pytest.raises(ValueError, match="a batch of 5 is not for 2 processes"):
        Batches(store, "train", batch_size=5, seed=0).tokens(0, rank=1, world_size=2)


@settings(deadline=None, max_examples=50)
@given(stores(), st.integers(0, 40), shards_in_memory, balances)
def test_a_resumed_stream_goes_on_as_if_never_stopped(store, step, shards, balance) -> None:
    options = {"batch_size": 5, "seed": 1, "memory_gb": memory_gb(store, shards)}
    through = Batches(store, "train", **options, balance=balance)
    before = [through.rows(s) for s in range(step + 1)]
    fresh = Batches(store, "train", **options, balance=balance)
    assert np.array_equal(fresh.rows(step), before[-1])


@settings(deadline=None, max_examples=50)
@given(stores(), shards_in_memory, st.integers(1, 9))
def test_balanced_by_video_each_video_comes_once(store, shards, batch_size) -> None:
    stream = Batches(
        store,
        "train",
        batch_size=batch_size,
        seed=0,
        memory_gb=memory_gb(store, shards),
        balance="video",
    )
    of_row = np.asarray(store.plan("train")["video"])
    videos = sorted(set(of_row))
    assert stream.epoch_length == len(videos)
    steps = -(-4 * len(videos) // batch_size)
    drawn = of_row[np.concatenate([stream.rows(step) for step in range(steps)])]
    for epoch in range(4):
        part = drawn[epoch * len(videos) : (epoch + 1) * len(videos)]
        assert sorted(part) == videos


@settings(deadline=None, max_examples=50)
@given(stores(), shards_in_memory, st.integers(1, 12))
def test_an_epoch_reads_each_shard_once_and_keeps_few(store, shards, batch_size) -> None:
    gigabytes = memory_gb(store, shards)
    stream = Batches(store, "train", batch_size=batch_size, seed=0, memory_gb=gigabytes)
    for step in range(store.num_windows("train") // batch_size):
        stream.tokens(step)
        assert len(stream._shards) <= max(2, shards)
    read = [shard for _, shard in store.shards_read]
    assert len(read) == len(set(read))


def test_epochs_seeds_and_stores_are_shuffled_apart(tmp_path: Path) -> None:
    def order(store: TokenStore, seed: int, step: int) -> list[int]:
        return Batches(store, "train", batch_size=61, seed=seed).rows(step).tolist()

    one, other = make_store(tmp_path / "one", 61), make_store(tmp_path / "other", 61, shard=16)
    orders = [order(one, 0, 0), order(one, 0, 1), order(one, 1, 0), order(other, 0, 0)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert all(sorted(rows) == list(range(61)) for rows in orders)
