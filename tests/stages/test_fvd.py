"""`mebt evaluate --i3d` with the real network, on a handful of tiny videos."""

import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.sets import COMPARED
from tests.conftest import GOLDEN
from tests.golden_checks.i3d import made_by
from tests.helpers.small import Flow

FRAMES = 10
"""I3D needs 9, the tokenizer an even number."""


@pytest.mark.slow
def test_fvd_of_a_whole_flow(flow: Flow) -> None:
    meta = json.loads((GOLDEN / "i3d_recipe" / "meta.json").read_text())
    weights = {name: made_by(spec) for name, spec in meta["weights"].items()}
    torch.save(weights, flow.root / "i3d.pt")
    flow.ok("tokenize", "--set", f"tokenize.frames={FRAMES}", out="longer")
    metrics = flow.root / "metrics.json"
    samples = ("--samples", str(flow.root / "longer"))  # Real ones, of the training split.
    values = ("--set", "evaluate.num_videos=2", "--set", "evaluate.batch_size=1")
    flow.ok("evaluate", *samples, *values)
    found = json.loads(metrics.read_text())
    expected = {f"{key}_{who}" for key in ("fvd", "kvd") for who in COMPARED}
    assert expected <= found["metrics"].keys()
    assert all(math.isfinite(found["metrics"][key]) for key in expected)
    assert found["metrics"]["fvd_real"] > 0
    assert not found["not_computed"].keys() & expected
    assert found["protocol"]["fvd"]["num_videos"] == 2
    assert len(list(Path(flow.root, "fvd-cache").glob("*.features"))) == 2
