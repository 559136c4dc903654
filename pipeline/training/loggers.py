"""Copies of a log for TensorBoard, Weights & Biases and others; none of them is ever read back."""

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.files import read_text, remove, write_text

LOGGERS = ("tensorboard", "csv", "dvclive", "wandb", "trackio")
"""Names of what can be logged to; each but `csv`, which Fabric brings, is a package and an extra.
"""
PROJECT = "mebt"

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Copy:
    """One logger, open."""

    send: Callable[[Any, int], object]
    """(numbers, step) -> adds them."""
    close: Callable[[], object]
    sent: int = 0
    """The last step that it has from before: what was done since the last checkpoint, and is done
    again, would stand there twice."""

    def write(self, line: Line) -> None:
        """Sends what was measured in a line, numbers on held-out windows by names of their own."""
        start = "validation/" if line.get("split") == "validation" else ""
        measured = {
            f"{start}{key}": value
            for key, value in line.items()
            if key != "step" and isinstance(value, int | float)
        }
        if line["step"] > self.sent:
            self.send(measured, line["step"])


def check_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError, naming the extra, if one of the loggers is not installed."""
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--logger {name} needs the extra `{name}`: pip install 'mebt[{name}]'."
            )


def open_copies(
    names: Sequence[str], folder: Path, *, kept: Sequence[Line], before: Sequence[Line], step: int
) -> list[Copy]:
    """Opens loggers for a run in `folder` that goes on behind `step`.

    `kept` are the lines of its log up to there, `before` those that there were before the run was
    stopped. A logger that can be made anew, or that is there for the first time, gets what is kept;
    another goes on where it was.
    """
    check_loggers(names)
    copies = []
    for name in dict.fromkeys(names):
        copy, missing = OPEN[name](folder, step, max((line["step"] for line in before), default=0))
        for line in kept if missing else ():
            copy.write(line)
        copies.append(copy)
    return copies


def _tensorboard(folder: Path, step: int, _: int) -> tuple[Copy, bool]:
    """What TensorBoard has of later steps it no longer shows, as the new file tells it."""
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    new = not (folder / "tensorboard").exists()
    purge_step = None if new else step + 1
    logger = TensorBoardLogger(folder, name="tensorboard", version="", purge_step=purge_step)
    return Copy(logger.log_metrics, lambda: logger.finalize("success")), new


def _csv(folder: Path, _: int, __: int) -> tuple[Copy, bool]:
    """Fabric's own file cannot be gone on with: it is written anew."""
    from lightning_fabric.loggers.csv_logs import CSVLogger

    remove(folder / "csv")
    logger = CSVLogger(folder, name="csv", version="", flush_logs_every_n_steps=1)
    return Copy(logger.log_metrics, lambda: logger.finalize("success")), True


def _dvclive(folder: Path, _: int, __: int) -> tuple[Copy, bool]:
    """Its tables cannot be cut: they are written anew. Nothing in dvc.yaml or git is touched.

    It takes `loss/mask_10` for a part of `loss`, which is a number, and fails: so no slashes.
    """
    logger = import_module("dvclive.fabric").DVCLiveLogger(
        dir=str(folder / "dvclive"), resume=False, report=None, save_dvc_exp=False, dvcyaml=None
    )

    def send(values: Line, step: int) -> None:
        logger.log_metrics({key.replace("/", "_"): value for key, value in values.items()}, step)

    return Copy(send, lambda: logger.finalize("success")), True


def _wandb(folder: Path, _: int, last: int) -> tuple[Copy, bool]:
    """Offline unless WANDB_MODE says otherwise: `wandb sync` sends it when that is wanted."""
    wandb = import_module("wandb")
    name, new = _name(folder, "wandb")
    try:
        run = wandb.init(
            project=PROJECT,
            id=name,
            name=name,
            dir=str(folder),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"--logger wandb: {str(error).splitlines()[0].rstrip('.')}.") from None
    return Copy(
        lambda values, step: run.log(values, step=step), run.finish, 0 if new else last
    ), new


def _trackio(folder: Path, _: int, last: int) -> tuple[Copy, bool]:
    """Lies where Trackio keeps its tables of all runs."""
    trackio = import_module("trackio")
    name, new = _name(folder, "trackio")
    run = trackio.init(project=PROJECT, name=name, resume="allow", embed=False)
    return Copy(
        lambda values, step: run.log(values, step=step), run.finish, 0 if new else last
    ), new


def _name(folder: Path, logger: str) -> tuple[str, bool]:
    """Returns what a logger calls the run, and whether it is new there."""
    path = folder / f"{logger}-run.txt"
    if path.exists():
        return read_text(path).strip(), False
    start = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name)[:64]  # As W&B takes names.
    name = f"{start}-{uuid.uuid4().hex[:8]}"
    write_text(path, f"{name}\n")
    return name, True


OPEN: Mapping[str, Callable[[Path, int, int], tuple[Copy, bool]]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "dvclive": _dvclive,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""(run's folder, step to go on from, last step logged before) -> a logger, and whether it lacks the
steps so far."""
