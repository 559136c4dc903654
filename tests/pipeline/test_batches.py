"""The stream of batches: a pure function of (store, seed, step), each window once per epoch."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batches import Batches
from pipeline.token_store import StoreInfo, TokenStore, create_store, numbered_plan

GRID = (1, 2, 2)


def make_store(root: Path, count: int, shard: int = 8, per_video: int = 1) -> TokenStore:
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
    videos = [f"v{row // per_video:05d}" for row in range(count)]
    plan = plan.set_column(3, plan.schema.field(3), [videos])
    writer = create_store(root, info, plan)
    for split, number in info.shards():
        start, stop = info.shard_rows(split, number)
        rows = np.arange(start, stop).reshape(-1, 1, 1, 1)
        writer.write_shard(split, number, np.broadcast_to(rows, (stop - start, *GRID)))
    return TokenStore(root)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TokenStore]:
    counts = (1, 7, 8, 9, 40, 61)
    return {n: make_store(tmp_path_factory.mktemp(f"s{n}"), n, per_video=3) for n in counts}


sizes = st.sampled_from((1, 7, 8, 9, 40, 61))
shards_in_memory = st.integers(1, 9)


def memory_gb(shards: int) -> float:
    return (shards + 0.5) * 8 * 4 * 2 / 2**30


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 13), st.integers(0, 3), shards_in_memory)
def test_each_window_exactly_once_per_epoch(stores, count, batch_size, seed, shards) -> None:
    stream = Batches(
        stores[count], "train", batch_size=batch_size, seed=seed, memory_gb=memory_gb(shards)
    )
    epochs = 3
    steps = -(-epochs * count // batch_size)
    rows = np.concatenate([stream.rows(step) for step in range(steps)])
    for epoch in range(epochs):
        part = rows[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))


@settings(deadline=None, max_examples=40)
@given(sizes, st.sampled_from((1, 2, 3, 4)), shards_in_memory, st.integers(0, 30))
def test_any_number_of_processes_sees_the_same_batch(stores, count, ranks, shards, step) -> None:
    def stream() -> Batches:
        return Batches(stores[count], "train", batch_size=12, seed=0, memory_gb=memory_gb(shards))

    whole = stream().read(step)
    parts = [stream().read(step, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), whole)
    # What a row holds is its number: so the tokens are those of the rows.
    assert np.array_equal(whole[:, 0], stream().rows(step))


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(0, 40), shards_in_memory)
def test_a_resumed_stream_goes_on_as_if_never_stopped(stores, count, step, shards) -> None:
    options = {"batch_size": 5, "seed": 1, "memory_gb": memory_gb(shards)}
    through = Batches(stores[count], "train", **options)
    before = [through.rows(s) for s in range(step + 1)]
    fresh = Batches(stores[count], "train", **options)
    assert np.array_equal(fresh.rows(step), before[-1])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from((7, 9, 40, 61)), shards_in_memory, st.integers(1, 9))
def test_balanced_by_video_each_video_comes_once(stores, count, shards, batch_size) -> None:
    stream = Batches(
        stores[count],
        "train",
        batch_size=batch_size,
        seed=0,
        memory_gb=memory_gb(shards),
        balance="video",
    )
    videos = -(-count // 3)
    assert stream.epoch_length == videos
    rows = np.concatenate([stream.rows(step) for step in range(-(-4 * videos // batch_size))])
    for epoch in range(4):
        part = rows[epoch * videos : (epoch + 1) * videos]
        assert sorted(part // 3) == list(range(videos))


def test_epochs_seeds_and_stores_are_shuffled_apart(stores, tmp_path: Path) -> None:
    def order(store: TokenStore, seed: int, step: int) -> list[int]:
        return Batches(store, "train", batch_size=61, seed=seed).rows(step).tolist()

    orders = [order(stores[61], 0, 0), order(stores[61], 0, 1), order(stores[61], 1, 0)]
    other = make_store(tmp_path, 61, shard=16)
    orders.append(order(other, 0, 0))
    assert len({tuple(rows) for rows in orders}) == 4
    assert all(sorted(rows) == list(range(61)) for rows in orders)


def test_a_small_memory_reads_few_shards_at_a_time(stores, monkeypatch) -> None:
    read: list[int] = []
    whole = TokenStore.read_shard

    def spy(self: TokenStore, split: str, shard: int):
        read.append(shard)
        return whole(self, split, shard)

    monkeypatch.setattr(TokenStore, "read_shard", spy)
    stream = Batches(stores[61], "train", batch_size=1, seed=0, memory_gb=memory_gb(4))
    assert stream.group_shards == 2
    for step in range(61):
        stream.read(step)
        assert len(stream._shards) <= 4
    assert sorted(read) == list(range(8))  # Each once: no shard is fetched twice in an epoch.
