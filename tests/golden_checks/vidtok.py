"""Encoding and decoding with published networks of VidTok, of weights made by recipe."""

from pathlib import Path

import torch

from tests.golden_checks.recipe import load_case, load_weights, recipe_tensor
from tests.golden_checks.vqgan import assert_near
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
    for clip, spec in meta["inputs"].items():
        shape = spec.pop("shape")
        video = recipe_tensor(shape, **spec) / 2  # Theirs are pixels in -1 … 1.
        tokens = io[f"{clip}.tokens"].long()
        with torch.no_grad():
            assert_near(model.features(video), io[f"{clip}.z"])
        assert torch.equal(model.encode(video), tokens)
        assert_near(2 * model.decode(tokens), io[f"{clip}.recon"])


CHECKS = {"vidtok": check_vidtok}
