"""A model trained on 20 windows until it knows them is flagged, one trained on many is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.writer import create_store
from stages.__main__ import cli

K, GRID = 16, (4, 3, 3)
PARAMS = {
    "model": {"layers": ["dense", "dense"], "width": 64, "num_heads": 4, "num_latents": 0},
    "train": {
        **{"max_steps": 200, "batch_size": 20, "learning_rate": 5e-3, "warmup_steps": 20},
        **{"validate_every": 1000, "checkpoint_every": 1000, "precision": "32-true"},
    },
    "sample": {"num_samples": 32, "batch_size": 32, "draft_steps": 36, "precision": "32-true"},
}


def draw(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws windows of a world: a bar of one colour falls over ground of another."""
    ground, bar = rng.integers(0, K // 2, count), rng.integers(K // 2, K, count)
    places = rng.integers(0, 3, (count, 1)) + rng.integers(0, 3, (count, 1)) * np.arange(4)
    rows = places[:, :, None] % 3 == np.arange(3)
    tokens = np.where(rows, bar[:, None, None], ground[:, None, None])[..., None].repeat(3, axis=3)
    noisy = rng.random(tokens.shape) < 0.3
    return np.where(noisy, rng.integers(0, K, tokens.shape), tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("windows", "copies"), [(20, True), (2000, False)])
def test_only_a_model_that_knows_its_windows_is_flagged(
    tmp_path: Path, windows: int, copies: bool
) -> None:
    rng = np.random.default_rng(0)
    splits = {"train": draw(windows, rng), "test": draw(80, rng)}
    info = StoreInfo(
        tokenizer=None,
        codebook_size=K,
        grid=GRID,
        source="world",
        counts={split: len(tokens) for split, tokens in splits.items()},
    )
    store = create_store(
        tmp_path / "tokens", info, numbered_plan(info.counts, "world", info.shard_windows)
    )
    for split, tokens in splits.items():
        store.write_shard(split, 0, tokens)
    YAML().dump(PARAMS, tmp_path / "params.yaml")

    def run(stage: str, *words: str) -> str:
        paths = [word if word.startswith("--") else str(tmp_path / word) for word in words]
        result = CliRunner().invoke(cli, [stage, *paths, "--params", str(tmp_path / "params.yaml")])
        assert result.exit_code == 0, result.output
        return result.output

    run("train", "--tokens", "tokens", "--out", "run")
    run("sample", "--run", "run", "--out", "samples")
    measured = ("--tokens", "tokens", "--samples", "samples")
    said = run("evaluate", *measured, "--out", "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["copying"]["flagged"] is copies
    # Copies are not told from training; what a model draws that learned for 200 steps is.
    assert (found["metrics"]["c2st_samples"] > 0.6) is not copies
    sentence = "It copies: " if copies else "No sign of copying: "
    assert sentence in said
    run("report", *measured, "--metrics", "metrics.json", "--out", "report.html")
    assert sentence in (tmp_path / "report.html").read_text()
