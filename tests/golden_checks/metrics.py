"""The published distances between sets of features, and what FVD's network is given."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.evaluation.i3d import i3d_input
from pipeline.metrics import frechet_distance, kernel_distance


def check(case: Path) -> None:
    expected = json.loads((case / "meta.json").read_text())
    data = load_file(case / "io.safetensors")
    x, y = data["x"].numpy(), data["y"].numpy()
    half = x.shape[1] // 2  # Fewer rows than features: singular covariances.

    assert frechet_distance(x, y) == pytest.approx(expected["frechet_float64"], rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(expected["frechet_scipy_float64"], rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(expected["frechet_float32"], rel=2e-4)
    rank_deficient = frechet_distance(x[:half], y[:half])
    assert rank_deficient == pytest.approx(expected["frechet_rankdef_float64"], rel=1e-6)
    assert rank_deficient == pytest.approx(expected["frechet_rankdef_float32"], rel=2e-4)
    # The published float32 code finds 0.0035 between equal sets; exactly it is 0.
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x) == pytest.approx(expected["frechet_same_float32"], abs=1e-2)

    assert kernel_distance(x, y) == pytest.approx(expected["mmd_float64"], rel=1e-9)
    assert kernel_distance(x, y) == pytest.approx(expected["mmd_float32"], rel=1e-5)
    assert kernel_distance(x, x) == pytest.approx(expected["mmd_same"], rel=1e-5)

    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    np.testing.assert_allclose(cov_x, data["cov_x"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(cov_y, data["cov_y"], rtol=0, atol=1e-6)
    root = data["sqrt_cov_x"].double().numpy()
    np.testing.assert_allclose(root @ root, cov_x, rtol=0, atol=1e-5)
    shift = x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)
    traces = np.trace(cov_x) + np.trace(cov_y) + shift @ shift
    shared = (traces - frechet_distance(x, y)) / 2
    assert shared == pytest.approx(expected["trace_sqrt_product_float64"], rel=1e-9)

    size = data["preprocessed"].shape[-1]
    torch.testing.assert_close(i3d_input(data["video_u8"], size=size), data["preprocessed"])


CHECKS: dict[str, Callable[[Path], None]] = {"fvd maths": check}
