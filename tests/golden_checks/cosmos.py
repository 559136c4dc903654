"""Encoding and decoding with published networks of Cosmos, of weights made by recipe."""

from pathlib import Path

import torch

from tests.golden_checks.recipe import load_case, load_weights, recipe_tensor
from tests.golden_checks.vqgan import assert_near
from tokenizer.cosmos import Cosmos
from tokenizer.cosmos.published import config_from_state, sort_names


def check_cosmos(case: Path) -> None:
    meta, io = load_case(case)
    state = load_weights(case, meta["weights"])
    config = config_from_state(state, state.keys() - set(meta["idle"]))
    assert list(config.downsample) == meta["downsample"]
    names, ignored = sort_names(state, config)
    assert sorted(ignored) == meta["idle"]
    model = Cosmos(config).eval()
    model.load_state_dict({ours: state[name] for ours, name in names.items()})
    for clip, spec in meta["inputs"].items():
        shape = spec.pop("shape")
        video = recipe_tensor(shape, **spec) / 2  # Theirs are pixels in -1 … 1.
        tokens = io[f"{clip}.tokens"].long()
        with torch.no_grad():
            assert_near(model.features(video), io[f"{clip}.z"])
        assert torch.equal(model.encode(video), tokens)
        assert_near(2 * model.decode(tokens), io[f"{clip}.recon"])


CHECKS = {"cosmos": check_cosmos}
