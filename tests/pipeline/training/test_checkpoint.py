"""Checkpoints: whole or absent, the old ones kept until the new one is read back."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.storage.files import write_json
from pipeline.training import checkpoint
from pipeline.training.checkpoint import (
    last_sha256,
    last_step,
    last_values,
    load_last,
    save_checkpoint,
)


def save(folder: Path, step: int, keep: int = 2) -> None:
    save_checkpoint(folder, step, {"x": torch.full((3,), step)}, {"a": [1, None]}, keep=keep)


def test_the_last_one_comes_back_and_few_are_kept(tmp_path: Path) -> None:
    assert load_last(tmp_path) is None
    for step in (1, 5, 10):
        save(tmp_path, step)
    found = load_last(tmp_path)
    assert found is not None
    assert (found.step, found.values) == (10, {"a": [1, None]})
    assert found.tensors["x"].tolist() == [10, 10, 10]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000005",
        "step-00000010",
    ]


def test_without_a_pointer_the_newest_one_comes_back(tmp_path: Path) -> None:
    for step in (2, 10):
        save(tmp_path, step)
    (tmp_path / "last").unlink()
    found = load_last(tmp_path)
    assert found is not None
    assert found.step == last_step(tmp_path) == 10


@pytest.mark.parametrize("file", ["state.safetensors", "meta.json", "last"])
def test_a_full_disk_leaves_the_one_before_usable(tmp_path: Path, monkeypatch, file: str) -> None:
    def full(write: Callable[..., None]) -> Callable[..., None]:
        def fails(*arguments: Any) -> None:
            path = next(x for x in arguments if isinstance(x, Path))
            if path.name != file:
                return write(*arguments)
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        return fails

    save(tmp_path, 1, keep=1)
    for name in ("save_file", "write_json", "write_text"):
        monkeypatch.setattr(checkpoint, name, full(getattr(checkpoint, name)))
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, keep=1)
    found = load_last(tmp_path)
    assert found is not None
    assert found.step == 1
    monkeypatch.undo()
    save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]


def test_a_disk_that_flips_a_bit_keeps_the_old_ones(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1)

    def flip_a_bit(path: Path, value: object) -> None:
        write_json(path, value)
        state = path.with_name("state.safetensors")
        data = state.read_bytes()
        state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(checkpoint, "write_json", flip_a_bit)
    with pytest.raises(CheckpointError, match="damaged"):
        save(tmp_path, 2, keep=1)
    found = load_last(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "", "step-9/../../x"])
def test_the_pointer_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "last").write_text(name)
    with pytest.raises(CheckpointError, match="no checkpoint of this folder"):
        load_last(tmp_path)


@pytest.mark.parametrize("key", ["step", "sha256", "values"])
def test_a_changed_record_is_refused_by_name(tmp_path: Path, key: str) -> None:
    save(tmp_path, 3)
    path = tmp_path / "step-00000003" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, key: {"step": 2, "sha256": "0", "values": {}}[key]}))
    for read in (load_last, last_sha256, last_values):
        with pytest.raises(CheckpointError, match=r"meta\.json is damaged: it is not what was"):
            read(tmp_path)


def test_a_checkpoint_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    for step in (3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000005")
    (tmp_path / "last").write_text("step-00000005")
    with pytest.raises(CheckpointError, match=r"step-00000005/meta\.json is damaged"):
        load_last(tmp_path)


def test_a_flipped_bit_of_what_a_checkpoint_says_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for path in (tmp_path / "step-00000005" / "meta.json", tmp_path / "last"):
        data = path.read_bytes()
        for at in range(len(data)):
            for bit in (at % 8, 5):  # The latter changes a letter's case, and 1e-3 to 1E-3.
                path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
                with pytest.raises(CheckpointError):
                    load_last(tmp_path)
        path.write_bytes(data)
    (tmp_path / "last").write_text("step-00000005")  # By hand.
    assert last_step(tmp_path) == 5
