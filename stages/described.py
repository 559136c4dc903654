"""What a report and a card say of a model's or a tokenizer's file."""

import json
import math
from pathlib import Path

from safetensors import safe_open

from mebt import model_metadata, weights_identity
from pipeline.errors import user_errors
from pipeline.report.artefacts import Artefact, model_artefact, tokenizer_artefact
from tokenizer import Tokenizer, identity, tokenizer_metadata

SHOWN = ("what", "codebook_size", "embedding_dim", "levels", "downsample", "causal")
"""What is said of a tokenizer's config."""


def describe_tokenizer(path: Path, model: Tokenizer) -> Artefact:
    """Describes a tokenizer and the file that it was read from."""
    return tokenizer_artefact(
        {name: getattr(model.config, name) for name in SHOWN},
        num_parameters=sum(p.numel() for p in model.parameters()),
        steps=tokenizer_metadata(path).get("steps"),
        identity=identity(model),
    )


def describe_model(path: Path, num_previews: int) -> Artefact:
    """Describes a model by its file. Raises CheckpointError if that is none."""
    with user_errors():
        metadata = model_metadata(path)
    with safe_open(path, framework="pt") as file:  # Shapes only: a model may be large.
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return model_artefact(
        json.loads(metadata["config"]),
        num_parameters=sum(map(math.prod, shapes)),
        steps=metadata.get("step"),
        num_previews=num_previews,
        identity=weights_identity(path),
    )
