"""Encoding and decoding with the published 3D VQGAN."""

from pathlib import Path

import torch
from torch import Tensor

from tests.golden_checks.recipe import load_case, load_weights
from tokenizer import VQGAN
from tokenizer.published import config_from_args, convert_state


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """The tolerance that the cases suggest: 1e-4 of the spread, and 1e-4 relative."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.std().item(), rtol=1e-4)


def check_vqgan(case: Path) -> None:
    meta, io = load_case(case)
    model = VQGAN(config_from_args(meta["hparams"])).eval()
    state, ignored = convert_state(load_weights(case, meta["weights"]))
    assert not ignored
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["codebook.initialized"]
    assert not result.unexpected_keys
    for clip in sorted({name.partition(".")[0] for name in io}):
        video, tokens = io[f"{clip}.video"], io[f"{clip}.tokens"]
        with torch.no_grad():
            assert_near(model.features(video), io[f"{clip}.z"])
        assert torch.equal(model.encode(video), tokens)
        assert_near(model.decode(tokens), io[f"{clip}.recon"])
        if f"{clip}.rand_tokens" in io:
            assert_near(model.decode(io[f"{clip}.rand_tokens"]), io[f"{clip}.rand_recon"])


CHECKS = {"vqgan": check_vqgan}
