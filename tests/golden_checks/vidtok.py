"""Encoding and decoding with published networks of VidTok, of weights made by recipe."""

from pathlib import Path

from tests.golden_checks.recipe import load_case, load_weights
from tests.golden_checks.vqgan import assert_same_codec
from tokenizer.vidtok import VidTok
from tokenizer.vidtok.published import as_3d, config_from_yaml, sort_names


def check_vidtok(case: Path) -> None:
    meta, io = load_case(case)
    state = load_weights(case, meta["weights"])
    config = config_from_yaml(meta["config"])
    names, ignored = sort_names(state, config)
    assert not ignored
    model = VidTok(config).eval()
    model.load_state_dict({ours: as_3d(state[name]) for ours, name in names.items()})
    assert_same_codec(model, meta, io)


CHECKS = {"vidtok": check_vidtok}
