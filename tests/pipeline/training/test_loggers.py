"""Copies of a log: each program gets every step once, also after a stop."""

import csv
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import ConfigError
from pipeline.training.log import Besides, Log
from pipeline.training.loggers import LOGGERS

KEYS = ("split", "l1", "l1/mask_10")
STEPS = [1, 2, 3, 4, 5]
Calls = list[tuple[str, Any]]


@pytest.fixture
def calls() -> Calls:
    return []


def stand_in(name: str, **parts: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(parts)
    return module


def recorder(calls: Calls) -> Callable[..., Any]:
    """Stands in for `wandb.init` and `trackio.init`."""

    class Run:
        def log(self, values: dict[str, float], *, step: int) -> None:
            calls.append(("log", (step, values)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**settings: Any) -> Run:
        calls.append(("init", settings))
        return Run()

    return init


@pytest.fixture(autouse=True)
def programs(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for what is not installed here."""

    errors = stand_in("wandb.errors", Error=type("Error", (Exception,), {}))
    for module in (
        stand_in("wandb", init=recorder(calls), errors=errors),
        stand_in("trackio", init=recorder(calls)),
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def write(log: Log, *steps: int) -> None:
    for step in steps:
        log.write(step, {"l1": step / 2, "l1/mask_10": step})
        if step % 2 == 0:
            log.write(step, {"split": "validation", "l1": step / 4})


def train(folder: Path, *loggers: str) -> None:
    """Does 5 steps: four, of which two are done again after a kill, and one more."""
    write(Log(folder, resumed_step=0, keys=KEYS, besides=Besides(loggers=loggers)), 1, 2, 3, 4)
    log = Log(folder, resumed_step=2, keys=KEYS, besides=Besides(loggers=loggers))
    write(log, 3, 4, 5)
    log.close()


def logged(calls: Calls, key: str) -> list[tuple[int, float]]:
    return [(x[0], x[1][key]) for name, x in calls if name == "log" and key in x[1]]


def test_without_the_flag_there_are_no_copies(tmp_path: Path, calls: Calls) -> None:
    train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert calls == []


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    write(Log(tmp_path, resumed_step=0, keys=KEYS), 1)
    for resumed, steps in ((1, (2, 3, 4)), (2, (3, 4, 5))):  # The first step from before the flag.
        log = Log(
            tmp_path, resumed_step=resumed, keys=KEYS, besides=Besides(loggers=["tensorboard"])
        )
        write(log, *steps)
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("l1")] == STEPS
    assert [event.value for event in events.Scalars("validation/l1")] == [0.5, 1.0]


def test_csv_holds_each_step_once(tmp_path: Path) -> None:
    train(tmp_path, "csv")
    with (tmp_path / "csv/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["l1"]] == STEPS
    assert [float(row["validation/l1"]) for row in rows if row["validation/l1"]] == [0.5, 1.0]


def test_dvclive_is_written_anew_and_leaves_dvc_yaml_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # No repository: as of one it would ask git.
    train(tmp_path / "run", "dvclive")
    tables = tmp_path / "run/dvclive/plots/metrics"
    for name, values in {"l1": [0.5, 1, 1.5, 2, 2.5], "l1_mask_10": [1, 2, 3, 4, 5]}.items():
        with (tables / f"{name}.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [int(row["step"]) for row in rows] == STEPS
        assert [float(row[name]) for row in rows] == values
    assert (tables / "validation_l1.tsv").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_run_that_goes_on_is_the_same_run_there(
    tmp_path: Path, calls: Calls, logger: str
) -> None:
    train(tmp_path, logger)
    assert logged(calls, "l1") == [(step, step / 2) for step in STEPS]
    assert logged(calls, "validation/l1") == [(2, 0.5), (4, 1.0)]
    first, second = (settings for name, settings in calls if name == "init")
    assert first == second
    assert first["resume"] == "allow"
    assert first["name"].startswith(f"{tmp_path.name}-")
    assert calls[-1] == ("finish", None)


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_logger_that_comes_later_gets_what_was(tmp_path: Path, calls: Calls, logger: str) -> None:
    write(Log(tmp_path, resumed_step=0, keys=KEYS), 1, 2, 3)
    write(Log(tmp_path, resumed_step=2, keys=KEYS, besides=Besides(loggers=[logger])), 3, 4, 5)
    assert [step for step, _ in logged(calls, "l1")] == STEPS


@pytest.mark.parametrize("mode", ["online", None])
def test_wandb_is_offline_unless_it_is_told_otherwise(
    tmp_path: Path, calls: Calls, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    train(tmp_path, "wandb")
    settings = calls[0][1]
    assert (settings["mode"], settings["dir"]) == (mode or "offline", str(tmp_path))


def test_what_wandb_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb: Any = sys.modules["wandb"]

    def refuse(**_: Any) -> None:
        raise wandb.errors.Error("api_key not configured.\nMore.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"^--logger wandb: api_key not configured\.$"):
        train(tmp_path, "wandb")


@pytest.mark.parametrize("logger", sorted({*LOGGERS} - {"csv"}))
def test_one_that_is_not_installed_names_the_extra(
    tmp_path: Path, logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        train(tmp_path, logger)
    said = f"--logger {logger} needs the extra `{logger}`: pip install 'mebt[{logger}]'."
    assert str(error.value) == said
