"""Which dataclass owns each section of params.yaml; each is imported when it is asked for."""

import importlib

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
    found: type = getattr(importlib.import_module(module), name)
    return found
