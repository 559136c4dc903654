"""Processes that share a store out, as one of them sees the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.store.claims import claim_shards
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore

INFO = StoreInfo(
    tokenizer="t",
    codebook_size=9,
    grid=(1, 2, 2),
    source="s",
    counts={"train": 21, "test": 5},
    shard_windows=8,
    chunk_windows=4,
)


class FirstOfTwo:
    """The first of two processes; what the other says is scripted."""

    global_rank, world_size, is_global_zero, device = 0, 2, True, torch.device("cpu")

    def __init__(self, *says: int | Exception) -> None:
        self.says = list(says)

    def broadcast(self, value: Any) -> Any:
        return value

    def all_reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        other = self.says.pop(0)
        if isinstance(other, Exception):
            raise other
        return tensor + other


def share(root: Path, fabric: FirstOfTwo) -> list[tuple[str, int]]:
    plan = numbered_plan(INFO.counts, "w", 8)
    with claim_shards(
        root, INFO, plan, fabric=fabric, batch_size=4, what="test", unit="window"
    ) as mine:
        for split, shard in mine.shards:
            start, stop = INFO.shard_rows(split, shard)
            mine.writer.write_shard(split, shard, np.zeros((stop - start, 1, 2, 2), np.int64))
            for first in range(start, stop, 4):
                mine.advance(min(4, stop - first))
        return mine.shards


def test_progress_is_that_of_all_and_nobody_is_left_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Mine: rows 0-7 and 16-20 of train, in 2 + 2 batches; the other's: 8-15, and 5 of test.
    fabric = FirstOfTwo(4, 4, 4, 1, 0)
    assert share(tmp_path, fabric) == [("train", 0), ("train", 2)]
    assert fabric.says == []  # As many rounds as the other has, and one at the end.
    assert "test: 26/26 windows" in capsys.readouterr().err
    assert TokenStore(tmp_path, allow_partial=True).missing() == [("train", 1), ("test", 0)]
    # What is missing is shared out anew: the other gets a shard that this one has not.
    assert share(tmp_path, FirstOfTwo(4, 1, 0)) == [("train", 1)]


def test_the_one_with_less_waits_in_every_round(tmp_path: Path) -> None:
    share(tmp_path, FirstOfTwo(4, 4, 4, 1, 0))
    store = TokenStore(tmp_path, allow_partial=True)
    store.files.remove("manifest/train-00002.parquet")
    fabric = FirstOfTwo(4, 4, 0)  # Missing: train 1 and 2, test 0. The other has train 2.
    fabric.says = [4, 1, 0, 0, 0]
    assert share(tmp_path, fabric) == [("train", 1), ("test", 0)]
    assert not fabric.says


@pytest.mark.parametrize("moment", [0, 1, 4])
def test_when_another_is_gone_this_one_says_so(tmp_path: Path, moment: int) -> None:
    says = [4, 4, 4, 1, 0]
    says[moment] = RuntimeError("Connection closed by peer")
    with pytest.raises(PipelineError, match="another process of this run has stopped: see"):
        share(tmp_path, FirstOfTwo(*says))
