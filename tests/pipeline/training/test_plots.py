"""Tables of a log: the same lines, by split, whatever happened to the run in between."""

import csv
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.training.log import Besides, Log

KEYS = ("split", "loss", "val_loss")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, *, step: int = 0) -> Log:
    return Log(
        folder / "run", resumed_step=step, keys=KEYS, besides=Besides(folder / "plots/train")
    )


def test_training_and_validation_are_tables_of_their_own(tmp_path: Path) -> None:
    made = log(tmp_path)
    made.write(1, {"loss": 0.5})
    made.write(2, {"loss": float("nan")})
    made.write(2, {"split": "validation", "val_loss": 0.25})
    plots = tmp_path / "plots/train"
    assert (plots / "training.csv").read_text() == "step,loss,val_loss\n1,0.5,\n2,,\n"
    assert (plots / "validation.csv").read_text() == "step,loss,val_loss\n2,,0.25\n"


def test_after_a_stop_they_say_what_the_log_says(tmp_path: Path) -> None:
    made = log(tmp_path)
    for step in (1, 2, 3):
        made.write(step, {"loss": step / 2})
    log(tmp_path, step=2).write(3, {"loss": 9.0})
    found = [(row["step"], row["loss"]) for row in rows(tmp_path / "plots/train/training.csv")]
    assert found == [("1", "0.5"), ("2", "1.0"), ("3", "9.0")]


def test_columns_of_an_older_log_stay(tmp_path: Path) -> None:
    Log(tmp_path / "run", resumed_step=0, keys=("split", "uniform")).write(1, {"uniform": 6.0})
    log(tmp_path, step=1).write(2, {"loss": 0.5})
    found = rows(tmp_path / "plots/train/training.csv")
    assert [(row["uniform"], row["loss"]) for row in found] == [("6.0", ""), ("", "0.5")]


def test_a_file_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "plots/train/validation.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("name,age\n")
    with pytest.raises(PipelineError, match=r"validation\.csv is no table of a log"):
        log(tmp_path)
    assert mine.read_text() == "name,age\n"
