"""The options that say what is known of videos."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from stages.options import FILE, Command


class FromType(click.ParamType):  # type: ignore[type-arg]
    """A file, or one of some words."""

    def __init__(self, *words: str) -> None:
        self.words: Sequence[str] = words
        self.name = "|".join((*words, "file"))

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        """Returns the word as it is, and a file as a path."""
        if value in self.words:
            return value
        path: Path = FILE.convert(value, param, ctx)
        return path


def conditions_options(help: str = "") -> Callable[[Command], Command]:
    """Adds `--labels`, `--captions` and `--states`; `help` is the end of what they say."""

    def add(command: Command) -> Command:
        command = click.option(
            "--states",
            type=FromType("beside"),
            help="Numbers of each frame: a CSV or Parquet of video, frame and names, or beside the "
            f"frames, as `extract` left them.{help}",
        )(command)
        command = click.option(
            "--captions",
            type=FromType("beside"),
            help="Captions of videos: a CSV or Parquet of video and caption, or beside the frames, "
            f"as `extract` left them. Kept for other programs.{help}",
        )(command)
        return click.option(
            "--labels",
            type=FromType("beside", "folders"),
            help="Labels of videos: a CSV or Parquet of video and label, beside the frames, as "
            f"`extract` left them, or the folders that videos lie in.{help}",
        )(command)

    return add


def files_of(*given: str | Path | None) -> list[Path]:
    """Returns what of `--labels`, `--captions` and `--states` is a file."""
    return [path for path in given if isinstance(path, Path)]
