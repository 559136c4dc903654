"""Learning rates and parameter groups of the published code."""

from pathlib import Path

import pytest

from mebt import MeBT
from mebt.optim import make_optimizer
from mebt.published import config_from_hparams, convert_name
from pipeline.training.task import LoopConfig, learning_rate
from tests.golden_checks.recipe import load_meta


def check_optim(case: Path) -> None:
    meta = load_meta(case)
    for entry in meta["lr"].values():
        config = LoopConfig(
            learning_rate=entry["learning_rate"],
            warmup_steps=entry["warmup_steps"],
            cosine=entry["cosine_lr"],
            max_steps=entry["max_steps"],
        )
        for step, expected in enumerate(entry["lr_at_step"]):
            assert learning_rate(step, config) == pytest.approx(expected, rel=1e-9, abs=1e-18)
    model = MeBT(config_from_hparams(meta["model"], codebook_size=meta["model"]["vocab"]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = meta["param_groups"][0]["weight_decay"]
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=decay)
    assert len(optimizer.param_groups) == len(meta["param_groups"])
    for ours, theirs in zip(optimizer.param_groups, meta["param_groups"], strict=True):
        found = [names[id(parameter)] for parameter in ours["params"]]
        assert sorted(found) == sorted(convert_name(name) for name in theirs["names"])
        for key in ("weight_decay", "lr", "eps"):
            assert ours[key] == theirs[key]
        assert list(ours["betas"]) == theirs["betas"]


CHECKS = {"lr schedule and parameter groups": check_optim}
