"""The `mebt` command: one sub-command for each stage."""

import ast
import errno
import importlib
import io
import os
import re
import sys
import threading
from pathlib import Path

import click
from safetensors import SafetensorError

from pipeline.errors import PipelineError
from pipeline.training.signals import leaving_at_once
from pipeline.tuning import tune_process

STAGES = (
    "init",
    "check",
    "extract",
    "fit-tokenizer",
    "reconstruct",
    "tokenize",
    "train",
    "sample",
    "decode",
    "continue",
    "fill",
    "inpaint",
    "play",
    "evaluate",
    "report",
    "push",
    "pull",
    "tokens",
    "import-tokenizer",
    "import-model",
    "import-config",
)
"""Commands, in the order in which their artefacts follow from one another."""

RESUMABLE = ("train", "fit-tokenizer")
"""Commands that a signal ends with "run me again", from their start on."""

OUTSIDE_CAUSES = {
    errno.ENOSPC: "Free some space and run it again",
    errno.EDQUOT: "Free some of the quota and run it again",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f) and run it again",
    errno.EROFS: "Choose a place that can be written",
    errno.EACCES: "Change its permissions or choose another place",
    errno.EPERM: "Change its permissions or choose another place",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ELOOP: "Choose another place",
    errno.EIO: "Check the disk, then run it again",
}


class StageGroup(click.Group):
    """Prints our own errors as one line; a bug keeps its traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Lists the stages in the order of the flow."""
        return list(STAGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a stage only when it is asked for."""
        if cmd_name not in STAGES:
            return None
        if ctx and cmd_name in RESUMABLE:
            ctx.with_resource(leaving_at_once())
        module = importlib.import_module(f"stages.{_module(cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the stages by what their files say of themselves, importing none: torch is slow."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command; one line for what a user can mend."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # A name that cannot be shown ends nothing.
            sys.stdout.reconfigure(errors="backslashreplace")
        old, threading.excepthook = threading.excepthook, show_thread_error
        try:
            tune_process()
            return super().invoke(ctx)
        except PipelineError as error:
            shown = click.ClickException(str(error))
            shown.exit_code = error.exit_code  # type: ignore[misc]  # As click's pages say.
            raise shown from error
        except (OSError, SafetensorError) as error:
            number, where, what = _outside_cause(error)
            if number not in OUTSIDE_CAUSES:
                raise
            raise click.ClickException(
                f"{where}{what}. {OUTSIDE_CAUSES[number]}; what was finished is kept."
            ) from error
        finally:
            threading.excepthook = old


def show_thread_error(error: threading.ExceptHookArgs) -> None:
    """Shows what ended a thread, such as TensorBoard's; one line for what a user can mend."""
    problem = error.exc_value
    if isinstance(problem, OSError) and problem.errno in OUTSIDE_CAUSES:
        _, where, what = _outside_cause(problem)
        sys.stderr.write(f"{where}{what}\n")  # At once: the main thread says something, too.
        sys.stderr.flush()
    else:
        threading.__excepthook__(error)


def _module(stage: str) -> str:
    return stage.replace("-", "_")


def _summary(stage: str) -> str:
    text = Path(__file__).with_name(f"{_module(stage)}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(text)))


def _outside_cause(error: OSError | SafetensorError) -> tuple[int | None, str, str]:
    """Returns the error number, the file as a prefix, and what the system says of it."""
    if isinstance(error, OSError):
        return error.errno, f"{error.filename}: " if error.filename else "", str(error.strerror)
    match = re.search(r"\(os error (\d+)\)", str(error))  # Its only trace of the number.
    number = int(match[1]) if match else None
    return number, "", os.strerror(number) if number else str(error)


@click.command(cls=StageGroup, context_settings={"max_content_width": 100})
@click.version_option(package_name="mebt")
def cli() -> None:
    """Tokenize videos once, train MeBT on the tokens, sample new videos.

    First `init`, which writes params.yaml; then the stages, in order: extract, fit-tokenizer,
    tokenize, train, sample, decode, evaluate, report. Paths come from the command line, values from
    params.yaml. `dvc repro` runs them all.

    \b
    Example:
      mebt init --videos footage/
      mebt extract --videos footage/ --out frames/
      mebt fit-tokenizer --frames frames/ --out tokenizer-run/
      mebt tokenize --frames frames/ --tokenizer tokenizer-run/tokenizer.safetensors --out tokens/
      mebt train --tokens tokens/ --out run/
      mebt sample --run run/ --out samples/tokens
    """


if __name__ == "__main__":
    cli()
