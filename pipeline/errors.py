"""The errors a user can mend. Each is one line: where, what, which value, what to do."""


class PipelineError(Exception):
    """A mistake in what was given, shown as one line and exit code 1, without a traceback."""


class ConfigError(PipelineError):
    """A value in `params.yaml` or in `--set` that cannot be used."""


class FrameError(PipelineError):
    """A video or frame that cannot be read or does not fit."""


class TokenStoreError(PipelineError):
    """A token store that is damaged, unfinished, or made for something else."""


class CheckpointError(PipelineError):
    """A tokenizer, model or checkpoint file that cannot be used."""
