"""The log of a run: what a checkpoint vouches for is there to the byte, or refused by name."""

import json
import math
from pathlib import Path

import pyarrow.json
import pytest
from pyarrow.json import ReadOptions

from pipeline.errors import PipelineError
from pipeline.training.checkpoint import save_checkpoint
from pipeline.training.log import Log, read_log


def logged(folder: Path) -> Log:
    log = Log(folder, resumed_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2, "split": "x"})
    return log


def test_a_resumed_log_drops_what_will_be_done_again(tmp_path: Path) -> None:
    log = Log(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": math.nan if step == 2 else 0.5, "split": "x"})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')  # Killed while it wrote.
    Log(tmp_path, resumed_step=2)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, None)]


def test_it_goes_on_behind_what_the_checkpoint_vouches_for(tmp_path: Path) -> None:
    log = logged(tmp_path)
    checksum, data = log.checksum(), log.path.read_bytes()
    log.write(4, {"loss": 0.0})
    Log(tmp_path, resumed_step=3, checksum=checksum)
    assert log.path.read_bytes() == data


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_log_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    log = logged(tmp_path)
    checksum, data = log.checksum(), log.path.read_bytes()
    save_checkpoint(tmp_path / "checkpoints", 3, {}, {"log": checksum}, keep=1)
    assert [line["step"] for line in read_log(log.path)] == [1, 2, 3]
    damaged = {
        "flip": data.replace(b"0.5", b"0.4"),
        "truncate": data[: data.index(b"\n") + 1],
        "empty": b"",
        "other": data.replace(b"x", b"y"),
    }[damage]
    log.path.write_bytes(damaged)
    for read in (read_log, lambda path: Log(path.parent, resumed_step=3, checksum=checksum)):
        with pytest.raises(PipelineError, match=r"metrics\.jsonl is damaged: its first .* bytes"):
            read(log.path)
    assert log.path.read_bytes() == damaged


def test_a_missing_log_is_said_and_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logged(tmp_path)
    checksum = log.checksum()
    save_checkpoint(tmp_path / "checkpoints", 3, {}, {"log": checksum}, keep=1)
    log.path.unlink()
    assert read_log(log.path) == []
    Log(tmp_path, resumed_step=3, checksum=checksum)
    assert log.path.read_bytes() == b""
    said = capsys.readouterr().err
    assert f"{log.path} is missing: its curves are left out" in said
    assert f"{log.path} is missing: a new log begins at step 3" in said


KEYS = ("split", "loss", "val_loss")


def test_each_line_has_every_key_from_the_first_on(tmp_path: Path) -> None:
    log = Log(tmp_path, resumed_step=0, keys=KEYS)
    log.write(1, {"loss": 0.5})
    log.write(2, {"split": "validation", "val_loss": 0.25})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [list(line) for line in lines] == [["step", *KEYS]] * 2
    assert lines[0] == {"step": 1, "split": None, "loss": 0.5, "val_loss": None}
    table = pyarrow.json.read_json(log.path, read_options=ReadOptions(block_size=80))
    assert table["val_loss"].to_pylist() == [None, 0.25]


def test_a_log_of_before_goes_on_and_keeps_its_lines(tmp_path: Path) -> None:
    old = Log(tmp_path, resumed_step=0)
    old.write(1, {"loss": 0.5})
    checksum, data = old.checksum(), old.path.read_bytes()
    log = Log(tmp_path, resumed_step=1, checksum=checksum, keys=KEYS)
    log.write(2, {"loss": 0.25})
    assert log.path.read_bytes().startswith(data)
    assert [line["loss"] for line in read_log(log.path)] == [0.5, 0.25]
