"""Every byte of every file of a store is covered, also those whose change changes no value."""

import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import TokenStoreError
from pipeline.storage.places import Folder
from pipeline.storage.sealed import from_parquet, to_parquet
from pipeline.store.reader import TokenStore
from tests.helpers.small import content
from tests.pipeline.store.test_update import BEFORE, lists, make

FILES = (
    *("store.json", "plan.parquet", "frames.parquet", "train.zarr/zarr.json"),
    *("train.zarr/c/1/0/0/0", "manifest/train-00001.parquet"),
)


def flipped(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def test_any_flipped_bit_of_a_table_is_noticed() -> None:
    table = pa.table({"a": ["x", "", "y"], "b": pa.array([1, 2, 3], pa.uint32())})
    data = to_parquet(table)
    assert from_parquet(data, rows=3).equals(table)
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises((pa.ArrowException, ValueError, OSError)):
                from_parquet(flipped(data, at, bit), rows=3)


def test_a_table_of_the_first_versions_is_read(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"]})
    pq.write_table(table, tmp_path / "old.parquet")
    assert from_parquet((tmp_path / "old.parquet").read_bytes(), rows=2).equals(table)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed") / "store"
    make(root, BEFORE)
    assert not TokenStore(root).verify()
    return root


def verified(root: Path) -> list[str]:
    try:
        return TokenStore(root, allow_partial=True).verify()
    except TokenStoreError as error:
        return [str(error)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("samples", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_named_and_mended(
    whole: Path, tmp_path: Path, name: str, samples: int
) -> None:
    root, draw = shutil.copytree(whole, tmp_path / "store"), random.Random(name)
    data = (whole / name).read_bytes()
    for number in range(samples):
        at = number * len(data) // samples + draw.randrange(max(1, len(data) // samples))
        (root / name).write_bytes(flipped(data, at, draw.randrange(8)))
        assert [line for line in verified(root) if re.search(rf"{re.escape(name)}\b", line)], at
        if number % 8 == 0:
            try:
                make(root, BEFORE)
            except TokenStoreError as error:
                assert "store.json" in str(error)  # What it says of itself is not believed.
            else:
                assert content(root) == content(whole)


def test_lists_of_other_frames_are_refused(whole: Path, tmp_path: Path) -> None:
    root = shutil.copytree(whole, tmp_path / "store")
    _, source, _ = lists({**BEFORE, "train0": [9] * 11})
    Folder(root).write("frames.parquet", to_parquet(source))
    assert "lists other frames than store.json was written with" in verified(root)[0]
    (root / "frames.parquet").unlink()
    assert "frames.parquet is missing; run the command" in verified(root)[0]
