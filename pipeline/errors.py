"""The errors a user can mend. Each is one line: where, what, which value, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PipelineError(Exception):
    """A mistake in what was given, shown as one line and without a traceback."""

    exit_code = 1


class ConfigError(PipelineError):
    """A value in `params.yaml` or in `--set` that cannot be used."""


class FrameError(PipelineError):
    """A video or frame that cannot be read or does not fit."""


class TokenStoreError(PipelineError):
    """A token store that is damaged, unfinished, or made for something else."""


class StorageError(PipelineError):
    """A bucket that cannot be reached or refuses: it says nothing of what is stored there."""


class CheckpointError(PipelineError):
    """A tokenizer, model or checkpoint file that cannot be used."""


class ShareError(PipelineError):
    """What was pushed, if it is damaged, unfinished, something else, or not to be trusted."""


class StoppedError(PipelineError):
    """A signal stopped a run after it saved its state: the same command goes on."""

    exit_code = 75
    """EX_TEMPFAIL, which job schedulers can be told to retry."""


@contextmanager
def user_errors(path: Path | str | None = None) -> Iterator[None]:
    """Turns the ValueError with which a model refuses a file into a line for the user.

    `path` opens the line, for errors that do not name their file.
    """
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}" if path else str(error)) from error
