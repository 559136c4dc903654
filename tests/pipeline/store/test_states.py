"""States beside the tokens: tables that say what they are of, and claims that cannot be."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import TokenStoreError
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.states import States
from pipeline.store.writer import create_store

GOOD = States(2, {"joint_pos": 3, "grip": 1})


def info_with(extra: object) -> StoreInfo:
    return StoreInfo(
        tokenizer=None,
        codebook_size=7,
        grid=(1, 2, 3),
        source="",
        counts={"train": 5},
        shard_windows=4,
        chunk_windows=2,
        extra={} if extra is None else {"states": extra},
    )


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    info = info_with(GOOD.recorded()["states"])
    assert States.of(info) == GOOD
    writer = create_store(tmp_path, info, numbered_plan(info.counts, "a", info.shard_windows))
    drawn = {
        name: np.random.default_rng(0).random((5, 2, width), np.float32)
        for name, width in GOOD.widths.items()
    }
    for shard in range(2):
        rows = slice(*info.shard_rows("train", shard))
        table = GOOD.table(info, "train", shard, {name: all_[rows] for name, all_ in drawn.items()})
        writer.write_shard("train", shard, np.zeros((len(table) // 2, 1, 2, 3), int), table)
    assert writer.store.verify() == []
    last = writer.store.states("train", 1)
    assert last.select(["split", "row", "frame"]).to_pylist() == [
        {"split": "train", "row": 4, "frame": 0},
        {"split": "train", "row": 4, "frame": 1},
    ]
    for name, all_ in drawn.items():
        np.testing.assert_array_equal(np.array(last[name].to_pylist(), np.float32), all_[4])


@pytest.mark.parametrize(
    "extra",
    [
        5,
        [],
        {},
        {"frames": 2, "widths": []},
        {"frames": 2, "widths": {}},
        {"frames": 2, "widths": {"a": 1.0}},
        {"frames": True, "widths": {"a": 1}},
        {"frames": 0, "widths": {"a": 1}},
        {"frames": 1 << 40, "widths": {"a": 1}},
        {"frames": 2, "widths": {"a": 1 << 20}},
        {"frames": 2, "widths": {"row": 1}},
        {"frames": 2, "widths": {"../a": 1}},
        {"frames": 2, "widths": {"a": 1}, "more": 1},
    ],
)
def test_states_that_cannot_be_are_refused(extra: object) -> None:
    with pytest.raises(TokenStoreError, match="states"):
        States.of(info_with(extra))


def test_a_store_without_states_has_none() -> None:
    assert States.of(info_with(None)) is None
