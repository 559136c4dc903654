"""Tokenizers that are to encode windows of frames."""

from pathlib import Path

from pipeline.errors import ConfigError, user_errors
from pipeline.size import sides
from pipeline.windows.plan import TokenizeConfig
from tokenizer import Tokenizer, load_tokenizer


def open_tokenizer(path: Path, config: TokenizeConfig, device: str) -> Tokenizer:
    """Opens a tokenizer. Raises ConfigError unless it can encode a window."""
    with user_errors():
        model = load_tokenizer(path, device)
    try:
        model.config.grid(config.frames, *sides(config.size))
    except ValueError as error:
        raise ConfigError(f"section tokenize does not fit {path}: {error}") from None
    return model
