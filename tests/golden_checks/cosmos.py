"""Encoding and decoding with published networks of Cosmos, of weights made by recipe."""

from pathlib import Path

from tests.golden_checks.recipe import load_case, load_weights
from tests.golden_checks.vqgan import assert_same_codec
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
    assert_same_codec(model, meta, io)


CHECKS = {"cosmos": check_cosmos}
