"""Which dataclass owns each section of params.yaml; each is imported when it is asked for."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from pipeline.config import as_dict, build

OWNERS = {
    "extract": "pipeline.video.tiles.ExtractConfig",
    "tokenizer": "tokenizer.config.VQGANConfig",
    "fit_tokenizer": "stages.tokenizer_task.FitTokenizerConfig",
    "tokenize": "pipeline.windows.plan.TokenizeConfig",
    "model": "mebt.config.MeBTShape",
    "train": "stages.mebt_task.TrainConfig",
    "sample": "stages.sample.SampleStageConfig",
    "decode": "pipeline.video.decoded.DecodeConfig",
    "evaluate": "pipeline.evaluation.config.EvaluateConfig",
}


def owner(section: str) -> type:
    """Returns the dataclass of a section."""
    module, _, name = OWNERS[section].rpartition(".")
    cls: type = getattr(importlib.import_module(module), name)
    return cls


def complete(values: Mapping[str, Mapping[str, Any]], *, where: str) -> dict[str, dict[str, Any]]:
    """Returns every section with every key, in the order of its dataclass, checked.

    A key that is not among `values` has its default. Raises ConfigError; `where` opens its message.
    """
    return {
        name: _complete(owner(name), values.get(name, {}), f"{where}: {name}") for name in OWNERS
    }


def _complete(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    built = as_dict(build(cls, values, where=where))
    return {field.name: built[field.name] for field in dataclasses.fields(cls)}
