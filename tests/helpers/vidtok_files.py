"""A checkpoint of VidTok as its authors publish it, made of a golden recipe."""

from pathlib import Path

import torch
from ruamel.yaml import YAML
from torch import Tensor

from tests.golden_checks.recipe import load_meta, load_weights
from tests.helpers.cosmos_files import GOLDEN

CASE = "vidtok_fsq_488"


def write_vidtok(checkpoint: Path, config: Path, *, case: str = CASE, **more: Tensor) -> None:
    """Writes what Lightning does, with what only training needs, and the YAML file."""
    meta = load_meta(GOLDEN / case)
    YAML().dump(meta["config"], config)
    state = load_weights(GOLDEN / case, meta["weights"])
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": {**state, **extra, **more}, "global_step": 7}, checkpoint)
