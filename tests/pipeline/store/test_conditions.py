"""Conditions of windows: labels in the plan, numbers by rows in any order, and what is no label."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import TokenStoreError
from pipeline.storage.sealed import to_parquet
from pipeline.store.batches import Batches
from pipeline.store.conditions import UNKNOWN, ConditionReader, condition_names
from pipeline.store.layout import (
    CAPTION,
    INFO,
    LABEL,
    PLAN,
    StoreInfo,
    hash_plan,
    numbered_plan,
    store_fingerprint,
)
from pipeline.store.reader import TokenStore
from pipeline.store.states import States
from pipeline.store.tables import with_texts
from pipeline.store.writer import create_store

STATES = States(2, {"action": 3, "grip": 1})
LABELS = ["surfing", None, "archery", "surfing", None, "archery", "archery", "diving", None]
"""Of the first 7 rows of train, then of 2 of test."""
COUNTS = {"train": 7, "test": 2}


def number_of(row: int, frame: int, place: int) -> float:
    return 100 * row + 10 * frame + place


def info_with(states: States | None = STATES) -> StoreInfo:
    return StoreInfo(
        tokenizer=None,
        codebook_size=7,
        grid=(1, 2, 3),
        source="",
        counts=COUNTS,
        shard_windows=2,
        chunk_windows=1,
        extra=states.recorded() if states else {},
    )


def store_with(
    root: Path, labels: Sequence[str | None] = LABELS, states: States | None = STATES
) -> TokenStore:
    info = info_with(states)
    plan = with_texts(numbered_plan(COUNTS, "a", info.shard_windows), LABEL, labels)
    writer = create_store(root, info, plan)
    for split, shard in info.shards():
        rows = range(*info.shard_rows(split, shard))
        values = {
            name: np.array(
                [[[number_of(r, f, k) for k in range(width)] for f in range(2)] for r in rows],
                np.float32,
            )
            for name, width in (states.widths.items() if states else ())
        }
        table = states.table(info, split, shard, values) if states else None
        writer.write_shard(split, shard, np.zeros((len(rows), 1, 2, 3), int), table)
    return TokenStore(root)


def test_names_are_of_all_splits_in_order(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    assert store.label_names == ["archery", "diving", "surfing"]
    assert condition_names(store) == ["label", "action", "grip"]
    assert store.verify() == []


@pytest.mark.parametrize("rows", [[6, 0, 3, 3, 1], [5], range(7)])
def test_conditions_are_of_the_rows_asked_for(tmp_path: Path, rows: Sequence[int]) -> None:
    read = ConditionReader(store_with(tmp_path), "train", ["grip", "label", "action"]).read(rows)
    places = {"archery": 0, "diving": 1, "surfing": 2, None: UNKNOWN}
    assert read.labels is not None
    assert read.labels.tolist() == [places[LABELS[row]] for row in rows]
    assert list(read.states) == ["grip", "action"]
    for name, width in (("action", 3), ("grip", 1)):
        expected = [[[number_of(r, f, k) for k in range(width)] for f in range(2)] for r in rows]
        np.testing.assert_array_equal(read.states[name], np.array(expected, np.float32))


def test_a_shard_that_is_kept_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path)
    read: list[int] = []
    whole = TokenStore.states

    def counted(self: TokenStore, split: str, shard: int) -> object:
        read.append(shard)
        return whole(self, split, shard)

    monkeypatch.setattr(TokenStore, "states", counted)
    reader = ConditionReader(store, "train", ["action"], kept_shards=2)
    for rows in ([0], [1, 2], [3, 0], [4], [0], [2]):
        reader.read(rows)
    assert read == [0, 1, 2, 0, 1]


def test_what_is_not_asked_for_is_not_there(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    assert ConditionReader(store, "test", ["grip"]).read([1]).labels is None
    assert ConditionReader(store, "test", ["label"]).read([0, 1]).states == {}


@pytest.mark.parametrize("name", ["label", "action"])
def test_a_store_without_conditions_says_so(tmp_path: Path, name: str) -> None:
    store = store_with(tmp_path, [None] * 9, None)
    assert store.label_names == []
    with pytest.raises(TokenStoreError, match=f"no condition '{name}'; it has none"):
        ConditionReader(store, "train", [name])


def test_an_unknown_condition_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError, match="'joint'; it has label, action, grip"):
        ConditionReader(store_with(tmp_path), "train", ["joint"])


def test_processes_share_the_rows_of_a_batch(tmp_path: Path) -> None:
    batches = Batches(store_with(tmp_path), "train", batch_size=6, seed=1)
    for step in range(3):
        parts = [batches.own_rows(step, rank=rank, world_size=3) for rank in range(3)]
        assert np.concatenate(parts).tolist() == batches.rows(step).tolist()


def test_a_plan_without_labels_keeps_its_hash() -> None:
    plan = numbered_plan({"train": 2}, "a", 2)
    assert with_texts(plan, LABEL, [None, None]) is plan
    numbers = [np.array(pair, "<i8").tobytes() for pair in ((0, 0), (0, 1), (0, 0))]
    said = [b"train\0train", *numbers[:2], b"a-00000\0a-00001", numbers[2]]
    assert hash_plan(plan) == hashlib.sha256(b"".join(said)).hexdigest()


def test_labels_are_part_of_the_fingerprint() -> None:
    plan, info = numbered_plan(COUNTS, "a", 2), info_with()
    kinds = (LABELS, [*LABELS[:-1], "x"], ["None", *LABELS[1:]], [None] * 9)
    hashes = {
        store_fingerprint(info, hash_plan(with_texts(plan, LABEL, labels))) for labels in kinds
    }
    assert len(hashes) == 4


def test_captions_are_part_of_the_fingerprint_and_no_labels() -> None:
    plan = numbered_plan(COUNTS, "a", 2)
    texts: list[str | None] = ["x", *[None] * 8]
    labels, captions = (with_texts(plan, name, texts) for name in (LABEL, CAPTION))
    both = with_texts(labels, CAPTION, texts)
    others = with_texts(both, CAPTION, ["y", *texts[1:]])
    assert len({hash_plan(made) for made in (plan, labels, captions, both, others)}) == 5
    assert both.equals(with_texts(captions, LABEL, texts))
    assert others.column_names == [*plan.column_names, LABEL, CAPTION]
    assert with_texts(others, CAPTION, texts).equals(both)


@pytest.mark.parametrize("caption", ["", "a" * 10_001])
def test_what_is_no_caption_is_refused(tmp_path: Path, caption: str) -> None:
    plan = with_texts(numbered_plan(COUNTS, "a", 2), CAPTION, [caption] * 9)
    create_store(tmp_path, info_with(), plan)
    with pytest.raises(TokenStoreError, match="a caption that is empty or too long"):
        TokenStore(tmp_path, allow_partial=True).plan()


def test_a_caption_that_is_no_text_is_refused(tmp_path: Path) -> None:
    plan = with_texts(numbered_plan(COUNTS, "a", 2), CAPTION, ["x"] * 9)
    create_store(tmp_path, info_with(), plan)
    buffers = pa.array([b"\xff"] * 9).buffers()
    texts = pa.Array.from_buffers(pa.string(), 9, buffers)
    damaged = plan.set_column(5, CAPTION, texts)
    (tmp_path / PLAN).write_bytes(to_parquet(damaged))
    with pytest.raises(TokenStoreError, match=r"plan\.parquet is damaged: .*UTF8"):
        TokenStore(tmp_path, allow_partial=True).plan()


def test_another_label_in_the_plan_is_noticed(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    plan = with_texts(numbered_plan(COUNTS, "a", 2), LABEL, ["x", *LABELS[1:]])
    (tmp_path / PLAN).write_bytes(to_parquet(plan))
    (line,) = TokenStore(tmp_path).verify()
    assert f"is not the plan that {INFO} was written with" in line
    with pytest.raises(TokenStoreError, match="not the plan"):
        _ = TokenStore(store.root).label_names


@pytest.mark.parametrize("label", ["", " ", "a\nb", "\x1b[2J", "a" * 201, "\0"])
def test_what_is_no_label_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(TokenStoreError, match="is no label"):
        _ = store_with(tmp_path, [label] * 9).label_names
