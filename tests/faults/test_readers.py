"""Faults of a store's shards, each put to both readers: ours by numcodecs, and zarr."""

import errno
import json
import os
import random
import shutil
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import fingerprint
from pipeline.errors import TokenStoreError
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.shards import decode_shard
from tests.faults import readers
from tests.faults.arms import FileSizeLimit, watch
from tests.faults.damage import HOW, disturb
from tests.faults.fuzz import VALUES
from tests.faults.hostile import forge_store, store_claims
from tests.faults.readers import different
from tests.faults.trial import Trial, WrongDataError
from tests.helpers.small import content, fork, has_ended
from tests.pipeline.store.test_reader import make

TOKENS = np.random.default_rng(0).integers(0, 300, (34, 4, 12, 12))
TOKENS[:12] %= 5
"""Of shards with as many windows, one has fewer bytes than the others."""


def new_store(root: Path) -> Path:
    return make(root, TOKENS, 300, shard=12, chunk=3)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return new_store(tmp_path / "tokens")


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("how", HOW)
def test_zarr_reads_a_damaged_shard_as_we_do(how: str, number: int, store: Path) -> None:
    draw = random.Random(f"{how} {number}")
    file, *others = draw.sample(sorted(store.glob("train.zarr/c/*/0/0/0")), 3)
    disturb(draw, how, file, others, inside=store)
    assert different(store) == []


@pytest.mark.parametrize(
    ("how", "ours", "theirs"),
    [
        ("flip", None, None),
        ("truncate", None, None),
        ("empty", None, "nothing"),
        ("delete", None, "nothing"),
        ("swap", "those of the other", "those of the other"),
    ],
)
def test_each_reader_answers_as_is_said_of_it(
    how: str, ours: str | None, theirs: str | None, store: Path
) -> None:
    file, other = (store / f"train.zarr/c/{shard}/0/0/0" for shard in (0, 1))
    disturb(random.Random(0), how, file, [other], inside=store)
    info = TokenStore(store).info
    answers = {None: None, "nothing": np.full(TOKENS[:12].shape, 65_535)}
    answers["those of the other"] = TOKENS[12:24]
    data = file.read_bytes() if file.exists() else b""
    for read, answer in (
        (lambda: decode_shard(info, "train", 0, data), ours),
        (lambda: zarr.open_array(store / "train.zarr", mode="r")[:12], theirs),
    ):
        with pytest.raises((ValueError, RuntimeError)) if answer is None else nullcontext():
            np.testing.assert_array_equal(read(), answers[answer])


@dataclass(frozen=True)
class Writers:
    """A process that writes stores, and leaves in `left` what a fault at each change leaves."""

    store: Path
    left: Path
    fault: str | int

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> None:
        match self.fault:
            case "kill":
                self.copy_before_each_change()
            case "size":
                self.limit_sizes()
            case int(error):
                self.fail_at_each_change(error)

    def copy_before_each_change(self) -> None:
        """Leaves what kill -9 would."""
        watch(self.store, lambda number, _: shutil.copytree(self.store, self.left / str(number)))
        new_store(self.store)

    def fail_at_each_change(self, error: int) -> None:
        at = changes = 0

        def fail(number: int, path: str) -> None:
            nonlocal changes
            changes += 1
            if changes == at:
                raise OSError(error, os.strerror(error), path)

        watch(self.left, fail)
        for at in range(1, 1000):
            changes = 0
            try:
                new_store(self.left / str(at))
            except OSError:
                continue
            return

    def limit_sizes(self) -> None:
        for most in range(10_000, 1000, -1000):
            FileSizeLimit(most)()
            with suppress(OSError):
                new_store(self.left / str(most))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", errno.EIO, errno.ENOSPC, "size"])
def test_zarr_reads_what_is_left_of_a_store_that_was_being_written(
    fault: str | int, tmp_path: Path
) -> None:
    store, left = (tmp_path / name for name in ("store", "left"))
    for folder in (store, left):
        folder.mkdir()
    process = fork([], run=Writers(store, left, fault))
    assert has_ended(process, 60) and process.exitcode == 0
    stores = {frozenset(content(root).items()): root for root in left.iterdir()}.values()
    shards = {len(list(root.glob("train.zarr/c/*/0/0/0"))) for root in stores}
    assert shards == ({0, 1, 3} if fault == "size" else {0, 1, 2, 3})
    for root in stores:
        assert different(root) == []


@pytest.mark.parametrize("name", ["train.zarr/c/1/0/0/0", "train.zarr/c", "train.zarr"])
def test_zarr_follows_links_that_we_refuse(name: str, store: Path) -> None:
    """That lead out of the store, which zarr has no bounds for."""
    (store / name).rename(store.parent / "outside")
    (store / name).symlink_to(store.parent / "outside")
    assert different(store) == []
    with pytest.raises(TokenStoreError, match="leads out of the store"):
        TokenStore(store).read_shard("train", 1)
    np.testing.assert_array_equal(zarr.open_array(store / "train.zarr", mode="r")[:], TOKENS)


@pytest.mark.parametrize("claim", store_claims(10**12), ids=str)
def test_zarr_reads_nothing_by_a_claim_of_ours(claim: dict[str, Any], store: Path) -> None:
    """It has a record of its own, the zarr.json."""
    forge_store(store, **claim)
    assert different(store) == []
    with pytest.raises(TokenStoreError):
        TokenStore(store).read_shard("train", 0)
    np.testing.assert_array_equal(zarr.open_array(store / "train.zarr", mode="r")[:], TOKENS)


def is_json(value: Any) -> bool:
    """Says whether a fingerprint can be made of a value: not of infinities."""
    try:
        fingerprint({"value": value})
    except ValueError:
        return False
    return True


def test_zarr_reads_what_we_do_whatever_a_record_says(store: Path) -> None:
    whole = json.loads((store / "store.json").read_text())
    keys = st.sampled_from([field.name for field in fields(StoreInfo)])

    @settings(max_examples=20, database=None, derandomize=True)
    @given(keys, VALUES.filter(is_json))
    @example("codebook_size", 70_000)
    @example("grid", [12, 4, 12])
    @example("counts", {"train": 33})
    @example("chunk_windows", 4)
    @example("shard_windows", 15)
    def check(key: str, value: Any) -> None:
        record = {**whole, "info": {**whole["info"], key: value}}
        sealed = {key: record[key] for key in ("schema", "info", "plan")}
        record["fingerprint"] = fingerprint(sealed)
        (store / "store.json").write_text(json.dumps(record))
        assert different(store) == []

    check()


def refuse(*_: object) -> None:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ("decode_shard", "zarr reads what we refuse"),
        ("read_places", "zarr reads what we refuse"),
        ("open_array", "zarr refuses what we read"),
    ],
)
def test_readers_that_differ_are_told(
    reader: str, said: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "open_array":
        monkeypatch.setattr(zarr.Array, "__getitem__", refuse)
    else:
        monkeypatch.setattr(readers, reader, refuse)
    found = different(store)
    assert len(found) == {"decode_shard": 3, "read_places": 12, "open_array": 15}[reader]
    assert all(line.endswith(said) for line in found)
    one = Trial(None, store.parent, random.Random(0))  # type: ignore[arg-type]
    with pytest.raises(WrongDataError, match=said):
        one.must_read_alike()


def test_other_tokens_are_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "decode_shard", lambda *_: np.zeros_like(TOKENS[:12]))
    assert [line.rpartition(": ")[2] for line in different(store)] == [
        "zarr reads other tokens"
    ] * 3
