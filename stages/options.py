"""Options that several commands share."""

import os
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from pipeline.errors import ConfigError
from pipeline.storage.hub import is_hub
from pipeline.storage.places import Place, is_remote
from pipeline.training.loggers import LOGGERS, check_loggers

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUT = click.Path(path_type=Path)


class WordType(click.types.StringParamType):
    """A word, which must not be empty: an unset variable of a shell would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the word."""
        word: str = super().convert(value, param, ctx)
        if not word:
            self.fail("an empty name is given.", param, ctx)
        return word


class PlaceType(click.ParamType):  # type: ignore[type-arg]
    """A folder, or `s3://bucket/prefix`; with `hub`, or `hf://owner/name`."""

    name = "place"

    def __init__(self, folder: click.Path, *, hub: bool = False) -> None:
        self.folder, self.hub = folder, hub

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Place:
        """Returns the URL as it is, and a folder as a path."""
        if is_remote(value) or (self.hub and is_hub(value)):
            return str(value)
        folder = self.folder.convert(value, param, ctx)
        assert isinstance(folder, Path)
        return folder


class NumberRange(click.FloatRange):
    """A range of numbers, of which NaN is none; click's takes it for one in every range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number."""
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


WORD = WordType()
PLACE, PLACE_OUT = PlaceType(FOLDER), PlaceType(OUT)
SHARE, SHARE_OUT = PlaceType(FOLDER, hub=True), PlaceType(OUT, hub=True)


def params_options(command: Command) -> Command:
    """Adds `--params FILE` and `--set section.key=value`: arguments `params`, `overrides`."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the params file; may be given several times.",
    )(command)
    return click.option(
        "--params",
        type=click.Path(path_type=Path),
        default=Path("params.yaml"),
        show_default=True,
        help="File with the values of every stage.",
    )(command)


def as_stored_option(section: str) -> Callable[[Command], Command]:
    """Adds `--as-stored`, short for `--set SECTION.as_stored=true`: overrides `as_stored`."""

    def override(_: click.Context, __: click.Parameter, given: bool) -> tuple[str, ...]:
        return (f"{section}.as_stored=true",) if given else ()

    return click.option(
        "--as-stored",
        is_flag=True,
        callback=override,
        help="Read pictures as they lie in the file, not as it says to show them.",
    )


def frames_option(command: Command) -> Command:
    """Adds `--frames N`, short for `--set sample.total_frames=N`: overrides `frames`."""

    def override(_: click.Context, __: click.Parameter, given: int | None) -> tuple[str, ...]:
        return () if given is None else (f"sample.total_frames={given}",)

    return click.option(
        "--frames",
        type=click.IntRange(min=1),
        callback=override,
        help="Frames of each video, short for --set sample.total_frames=FRAMES.",
    )(command)


def cameras_option(command: Command) -> Command:
    """Adds `--camera`, as `cameras`."""
    return click.option(
        "--camera",
        "cameras",
        multiple=True,
        help="Camera of a LeRobot data set; repeat it for several.  [default: all]",
    )(command)


def skip_broken_option(command: Command) -> Command:
    """Adds `--skip-broken`."""
    return click.option(
        "--skip-broken",
        is_flag=True,
        help="Go on without broken tars, which are named and counted.",
    )(command)


def overwrite_option(command: Command) -> Command:
    """Adds `--overwrite`."""
    return click.option(
        "--overwrite",
        is_flag=True,
        help="Replace an output made with other values; one made with these is continued.",
    )(command)


def verify_option(command: Command) -> Command:
    """Adds `--verify-frames`."""
    return click.option(
        "--verify-frames",
        is_flag=True,
        help="Decode every frame first, and name all that are damaged, before anything is made.",
    )(command)


def log_options(command: Command) -> Command:
    """Adds where a log is copied to: `--plots FOLDER` and `--logger NAME`, as `loggers`."""

    def installed(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
        check_loggers(names)
        return names

    command = click.option(
        "--logger",
        "loggers",
        type=click.Choice(LOGGERS),
        multiple=True,
        callback=installed,
        help="Send the log there, too; may be given several times.",
    )(command)
    return click.option(
        "--plots",
        type=OUT,
        help="Folder for the log as tables, training.csv and validation.csv: see `dvc plots`.",
    )(command)


def choose_split(split: str | None, known: Sequence[str], tokens: Place) -> str:
    """Returns the split that `--split` names, or the only one of the store."""
    if split is None and len(known) == 1:
        return known[0]
    if split is None or split not in known:
        raise click.UsageError(f"give --split: {tokens} has {', '.join(known)}.")
    return split


def device_option(command: Command) -> Command:
    """Adds `--device`, already resolved to a device that this machine has."""

    def resolve(_: click.Context, __: click.Parameter, value: str) -> str:
        return resolve_device(value)

    return click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=resolve,
        help="auto, cpu, cuda, cuda:N or mps.",
    )(command)


def resolve_device(name: str) -> str:
    """Returns the device to use. `auto` is the first of cuda, mps, cpu that there is."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no CUDA device; use --device cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"--device {name}: torch sees no Apple GPU; use --device cpu.")
    return name


def workers_option(command: Command) -> Command:
    """Adds `--workers`: a number, or None for `spare_cores`."""
    return click.option(
        "--workers",
        type=click.IntRange(min=0, max=256),
        help="Processes that decode frames ahead, for each device; 0: a thread.  [default: 8, if "
        "so many cores are idle]",
    )(command)


def spare_cores(device: str, processes: int = 1) -> int:
    """Counts the cores, up to 8, that a process on a GPU leaves idle; on a CPU torch uses all."""
    if torch.device(device).type == "cpu":
        return 0
    return max(0, min(8, (os.cpu_count() or 1) // processes - 1))
