"""Encoding and decoding with the published 3D VQGAN."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden_checks.recipe import load_case, load_weights, recipe_tensor
from tokenizer import VQGAN, Tokenizer
from tokenizer.published import config_from_args, convert_state


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """The tolerance that the cases suggest: 1e-4 of the spread, and 1e-4 relative."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.std().item(), rtol=1e-4)


def assert_same_codec(model: Tokenizer, meta: dict[str, Any], io: dict[str, Tensor]) -> None:
    """Encodes and decodes the clips of a case of Cosmos or VidTok."""
    for clip, spec in meta["inputs"].items():
        shape = spec.pop("shape")
        video = recipe_tensor(shape, **spec) / 2  # Theirs are pixels in -1 … 1.
        tokens = io[f"{clip}.tokens"].long()
        with torch.no_grad():
            assert_near(model.features(video), io[f"{clip}.z"])
        assert torch.equal(model.encode(video), tokens)
        assert_near(2 * model.decode(tokens), io[f"{clip}.recon"])


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
