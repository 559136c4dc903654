"""Models of pictures that are to fit windows of frames: tokenizers, and LPIPS."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError, user_errors
from pipeline.evaluation.numbers import Missing
from pipeline.evaluation.pictures import FrameDistances
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.size import Size, sides
from pipeline.windows.plan import TokenizeConfig
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.perceptual import HOW_TO_GET, SMALLEST, load_lpips
from tokenizer.weights import TokenizerConfig


def check_window(shape: TokenizerConfig, windows: TokenizeConfig, said: str) -> None:
    """Raises ConfigError, which opens with `said`, unless such a tokenizer can encode a window."""
    try:
        shape.grid(windows.frames, *sides(windows.size))
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from None


def open_tokenizer(path: Path, windows: TokenizeConfig, device: str) -> Tokenizer:
    """Opens a tokenizer. Raises ConfigError unless it can encode a window."""
    with user_errors():
        model = load_tokenizer(path, device)
    check_window(model.config, windows, f"section tokenize does not fit {path}")
    return model


def open_distances(
    files: Sequence[Path], size: Size | None, device: str
) -> FrameDistances | Missing:
    """Opens LPIPS for frames of a size, or says why it cannot be measured."""
    if not files:
        return Missing(f"needs weights, and no --lpips was given: {HOW_TO_GET}")
    with user_errors():
        tensors = {str(file): state_tensors(file, load_content(file)) for file in files}
        model = load_lpips(tensors, device)
    if size is not None and min(sides(size)) < SMALLEST:
        return Missing(f"needs frames of {SMALLEST} pixels a side, got {size}")
    return model.frame_distances
