"""LPIPS, with weights and pictures made by recipe."""

from pathlib import Path

import torch

from tests.golden_checks.i3d import made_by
from tests.golden_checks.recipe import load_case
from tokenizer.perceptual import load_lpips


def check_lpips(case: Path) -> None:
    meta, io = load_case(case)
    model = load_lpips({"recipe": {name: made_by(spec) for name, spec in meta["weights"].items()}})
    assert sum(p.numel() for p in model.parameters()) == meta["n_parameters"]
    inputs = {name: made_by(spec) for name, spec in meta["inputs"].items()}
    for name in (name for name in inputs if name.startswith("x")):
        number = name.removeprefix("x")
        x = inputs[name].requires_grad_()
        distances = model(x, inputs[f"y{number}"])
        distances.sum().backward()
        torch.testing.assert_close(distances.detach(), io[f"distance{number}"])
        assert x.grad is not None
        gradient = io[f"gradient{number}"]
        atol = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=atol)


CHECKS = {"lpips with recipe weights": check_lpips}
