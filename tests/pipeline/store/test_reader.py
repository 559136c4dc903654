"""Token stores as such: round trips, hostile headers, what readers of other kinds find."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TokenStoreError
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore, read_rows
from pipeline.store.shards import MAX_COMPRESSION
from pipeline.store.writer import create_store
from tests.helpers.small import content


def make(root: Path, tokens: np.ndarray, codebook_size: int, *, shard: int, chunk: int) -> Path:
    info = StoreInfo(
        tokenizer="t",
        codebook_size=codebook_size,
        grid=tokens.shape[1:],
        source="s",
        counts={"train": len(tokens)},
        shard_windows=shard,
        chunk_windows=chunk,
    )
    writer = create_store(root, info, numbered_plan(info.counts, "w", shard))
    for split, number in info.shards():
        writer.write_shard(split, number, tokens[slice(*info.shard_rows(split, number))])
    return root


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 20),
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    codebook_size=st.sampled_from((1, 2, 256, 65_534, 65_535, 65_536, 2**31)),
    chunk=st.integers(1, 4),
    chunks=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_tokens_come_back(
    tmp_path_factory, count, grid, codebook_size, chunk, chunks, seed
) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, codebook_size, (count, *grid))
    tokens.flat[0] = codebook_size - 1
    root = make(
        tmp_path_factory.mktemp("s"), tokens, codebook_size, shard=chunk * chunks, chunk=chunk
    )
    store = TokenStore(root)
    rows = rng.integers(count, size=rng.integers(1, 9))
    np.testing.assert_array_equal(read_rows(store, "train", rows.tolist()), tokens[rows])
    np.testing.assert_array_equal(store.read("train"), tokens)
    assert store.read("train").dtype == np.int64
    assert not store.verify()
    # Anybody's zarr finds the same tokens.
    array = zarr.open_array(root / "train.zarr", mode="r")
    np.testing.assert_array_equal(array[:].astype(np.int64), tokens)
    assert int(array.fill_value) not in range(codebook_size)


def test_the_same_tokens_make_the_same_bytes(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (21, 2, 3, 4))
    one, two = (make(tmp_path / n, tokens, 9, shard=8, chunk=4) for n in "ab")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_the_manifest_names_every_shard(tmp_path: Path) -> None:
    root = make(tmp_path, np.zeros((21, 1, 2, 2), np.int64), 9, shard=8, chunk=4)
    parts = [pq.read_table(path).to_pylist()[0] for path in sorted((root / "manifest").iterdir())]
    assert [(part["split"], part["shard"], part["rows"]) for part in parts] == [
        ("train", 0, 8),
        ("train", 1, 8),
        ("train", 2, 5),
    ]
    assert all(part["bytes"] > 0 and len(part["sha256"]) == 64 for part in parts)


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path, np.zeros((21, 1, 2, 2), np.int64), 9, shard=8, chunk=4)
    (root / "manifest" / "train-00001.parquet").unlink()
    with pytest.raises(TokenStoreError, match="unfinished: shard 1 of train is missing, 2 of 3"):
        TokenStore(root)
    assert TokenStore(root, allow_partial=True).missing() == [("train", 1)]
    (root / "plan.parquet").unlink()
    with pytest.raises(TokenStoreError, match=r"plan\.parquet is missing; run the command that"):
        TokenStore(root)


@pytest.mark.parametrize(
    "change",
    [
        {"grid": [1 << 20, 1 << 20, 1]},
        {"grid": [1, 2]},
        {"grid": "abc"},
        {"codebook_size": 0},
        {"codebook_size": "9"},
        {"counts": {}},
        {"counts": {"../../etc": 3}},
        {"counts": {"train": -1}},
        {"shard_windows": 7},
        {"shard_windows": 1 << 40, "chunk_windows": 1 << 40},
        {"grid": [1 << 27, 1, 1]},
        {"counts": {"train": 10**15}},
        {"unknown": 1},
        {"frames": "x"},
    ],
)
def test_a_hostile_header_is_one_clear_line(tmp_path: Path, change: dict) -> None:
    root = make(tmp_path, np.zeros((5, 1, 2, 2), np.int64), 9, shard=8, chunk=4)
    record = json.loads((root / "store.json").read_text())
    record["info"] |= change
    (root / "store.json").write_text(json.dumps(record))
    with pytest.raises(TokenStoreError, match=r"store\.json"):
        TokenStore(root)


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_header_makes_the_reader_crash(tmp_path_factory, value) -> None:
    root = tmp_path_factory.mktemp("s")
    for record in (value, {"schema": 1, "info": value}, {"schema": 1, "info": {"grid": value}}):
        (root / "store.json").write_text(json.dumps(record))
        with pytest.raises(TokenStoreError):
            TokenStore(root)


def test_a_header_of_another_array_is_never_obeyed(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (21, 2, 3, 4))
    root = make(tmp_path, tokens, 9, shard=8, chunk=4)
    header = root / "train.zarr" / "zarr.json"
    changed = json.loads(header.read_text())
    changed["shape"] = [10**9, 1000, 1000, 1000]  # Would not fit any machine.
    header.write_text(json.dumps(changed))
    store = TokenStore(root)
    np.testing.assert_array_equal(store.read("train"), tokens)
    assert any("zarr.json" in line for line in store.verify())


def test_a_shard_of_equal_tokens_is_read_but_none_that_claims_more(tmp_path: Path) -> None:
    equal = np.full((64, 8, 64, 64), 7)  # Shrinks most.
    root = make(tmp_path, equal, 9, shard=64, chunk=64)
    store = TokenStore(root)
    size = store.shard_file("train", 0).stat().st_size
    assert (store.read_shard("train", 0) == 7).all()
    assert MAX_COMPRESSION / 4 < equal.nbytes / 4 / size < MAX_COMPRESSION
    store.info = dataclasses.replace(store.info, grid=(32, 64, 64))
    with pytest.raises(TokenStoreError, match=r"0/0/0 cannot be decoded: \d+ bytes never hold 64"):
        store.read_shard("train", 0)


@pytest.mark.parametrize("name", ["plan.parquet", "manifest/train-00000.parquet"])
def test_a_table_of_millions_of_rows_is_not_read(tmp_path: Path, name: str, monkeypatch) -> None:
    root = make(tmp_path, np.zeros((5, 1, 2, 2), np.int64), 9, shard=8, chunk=4)
    table = pq.read_table(root / name)
    pq.write_table(pa.concat_tables([table] * 7), root / name)
    read = pq.ParquetFile.read

    def few_rows(self: pq.ParquetFile) -> pa.Table:
        assert self.metadata.num_rows < 7
        return read(self)

    monkeypatch.setattr(pq.ParquetFile, "read", few_rows)
    (line,) = TokenStore(root, allow_partial=True).verify()
    assert str(root / name) in line


def test_a_folder_of_something_else_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / ".store.partial.json").touch()  # What a kill leaves is no reason to refuse.
    tokens = np.zeros((5, 1, 2, 2), np.int64)
    root = make(tmp_path, tokens, 9, shard=8, chunk=4)
    (root / "store.json").unlink()
    info = StoreInfo(
        tokenizer="t", codebook_size=9, grid=(1, 2, 2), source="s", counts={"train": 5}
    )
    with pytest.raises(TokenStoreError, match=r"holds manifest but no store\.json"):
        create_store(root, info, numbered_plan(info.counts, "w", 8), overwrite=True)
    assert (root / "manifest").exists()


def test_a_store_that_lost_its_record_is_known_by_its_shards(tmp_path: Path) -> None:
    info = StoreInfo(
        tokenizer="t", codebook_size=9, grid=(1, 2, 2), source="s", counts={"train": 5, "test": 3},
        shard_windows=4, chunk_windows=4,
    )  # fmt: skip
    plan = numbered_plan(info.counts, "w", 4)
    writer = create_store(tmp_path, info, plan)
    writer.write_shard("train", 0, np.ones((4, 1, 2, 2), np.int64))
    whole = content(tmp_path)
    (tmp_path / "store.json").unlink()
    with pytest.raises(TokenStoreError, match=r"store\.json is missing; run the command"):
        TokenStore(tmp_path)
    other = dataclasses.replace(info, source="another")
    with pytest.raises(TokenStoreError, match=r"no store\.json, so it is no token store"):
        create_store(tmp_path, other, plan, overwrite=True)
    again = create_store(tmp_path, info, plan)
    assert content(tmp_path) == whole
    assert again.unfinished() == [("train", 1), ("test", 0)]


def test_tokens_beyond_the_codebook_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit a codebook of 9"):
        make(tmp_path, np.full((5, 1, 2, 2), 9), 9, shard=8, chunk=4)
