"""The model of a run, opened to be sampled."""

from pathlib import Path

from mebt import MeBT, load_model, model_metadata
from mebt.weights import MODEL_FILE
from pipeline.errors import CheckpointError, user_errors


def open_model(run: Path, device: str) -> tuple[Path, dict[str, str], MeBT]:
    """Returns the file, its header and the model. Raises CheckpointError if it is not usable."""
    path = run / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{path} is missing; train it with `mebt train --out {run}`.")
    with user_errors():
        return path, model_metadata(path), load_model(path, device)
