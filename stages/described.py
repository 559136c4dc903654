"""What a report and a card say of a model's or a tokenizer's file; what is pushed and pulled."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mebt import load_model, model_metadata, weights_identity
from mebt.weights import MODEL_FILE
from pipeline.config import load_params
from pipeline.errors import CheckpointError, ShareError, user_errors
from pipeline.evaluation.written import read_evaluation
from pipeline.report.artefacts import (
    Artefact,
    check_measured,
    model_artefact,
    tokenizer_artefact,
)
from pipeline.training.folder import RECORD, read_record
from pipeline.training.previews import read_previews
from tokenizer import (
    Tokenizer,
    identity,
    load_tokenizer,
    tokenizer_metadata,
    tokens_identity,
)
from tokenizer.weights import TOKENIZER_FILE

METRICS, PARAMS = "metrics.json", "params.yaml"
SHOWN = ("what", "codebook_size", "embedding_dim", "levels", "downsample", "causal")
"""What is said of a tokenizer's config."""


def describe_tokenizer(path: Path, model: Tokenizer) -> Artefact:
    """Describes a tokenizer and the file that it was read from."""
    return tokenizer_artefact(
        {name: getattr(model.config, name) for name in SHOWN},
        num_parameters=sum(p.numel() for p in model.parameters()),
        steps=tokenizer_metadata(path).get("steps"),
        identity=identity(model),
        tokens_of=tokens_identity(model),
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


def describe_files(files: Mapping[str, Path]) -> tuple[list[Artefact], dict[str, Any]]:
    """Reads all that a card speaks of: model, tokenizer, and the numbers of `mebt evaluate`.

    Raises PipelineError if one of them is damaged, or if they do not belong together.
    """
    found, made_tokens = [], None
    record = read_record(files[RECORD]) if RECORD in files else {}
    if path := files.get(TOKENIZER_FILE):
        with user_errors():
            decoder = load_tokenizer(path)
        made_tokens = tokens_identity(decoder)
        found.append(describe_tokenizer(path, decoder))
    if path := files.get(MODEL_FILE):
        with user_errors():
            load_model(path)
            made_for = model_metadata(path).get("tokenizer") or None
        if made_tokens and made_for and made_for != made_tokens:
            raise CheckpointError(
                f"{path} was trained on tokens of tokenizer {made_for}, but "
                f"{files[TOKENIZER_FILE]} is {made_tokens}. Give the one that made them."
            )
        found.append(describe_model(path, len(read_previews(path.parent))))
        if record and record.get("tokens", {}).get("tokenizer") != made_for:
            raise CheckpointError(
                f"{files[RECORD]} is of another run than {path}: of tokens of another tokenizer."
            )
    evaluation: dict[str, Any] = {}
    if path := files.get(METRICS):
        evaluation = read_evaluation(path, ShareError)
        check_measured(evaluation, found, path)
    if path := files.get(PARAMS):
        load_params(path)
    return found, evaluation
