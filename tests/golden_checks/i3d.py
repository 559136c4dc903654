"""The network of FVD, with weights and inputs made by recipe."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluation.i3d import I3D, load_i3d
from tests.golden_checks.recipe import load_case, recipe_tensor


def made_by(spec: dict) -> Tensor:
    return recipe_tensor(
        spec["shape"], seed=spec["seed"], scale=spec["scale"], offset=spec["offset"]
    )


def check_i3d(case: Path) -> None:
    meta, io = load_case(case)
    assert sum(p.numel() for p in I3D().parameters()) == meta["n_parameters"]
    assert {k: list(v.shape) for k, v in I3D().state_dict().items()} == meta["state_dict"]
    with tempfile.TemporaryDirectory() as folder:
        state = {name: made_by(spec) for name, spec in meta["weights"].items()}
        torch.save(state, Path(folder) / "i3d.pt")
        model = load_i3d(Path(folder) / "i3d.pt")
    pooled: list[Tensor] = []
    model.average.register_forward_hook(lambda *call: pooled.append(call[-1].mean(dim=(3, 4))))
    for name, spec in meta["inputs"].items():
        number = name.removeprefix("input")
        with torch.no_grad():
            logits = model(made_by(spec))
        torch.testing.assert_close(logits, io[f"logits{number}"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pooled[-1], io[f"pool{number}"], rtol=1e-4, atol=1e-4)


CHECKS = {"i3d forward with recipe weights": check_i3d}
