"""`dvc repro` in small: everything once, nothing twice, a new learning rate never tokenizes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.video import moving_shapes, write_mp4
from tests.stages.small import content

ROOT = Path(__file__).parent.parent
SMALL = {
    "extract": {
        "tile": None,
        "tile_hop": None,
        "clip_frames": None,
        "min_motion": 0.0,
        "test_share": 0.5,
    },
    "tokenize": {"shard_windows": 8, "chunk_windows": 8},
    "model": {"layers": ["encode", "decode"], "width": 16, "num_heads": 2, "num_latents": 4},
    "train": {"max_steps": 4, "batch_size": 2, "checkpoint_every": 2, "validation_windows": 4},
    "sample": {"num_samples": 4, "draft_steps": 2, "revise_rounds": 1},
    "evaluate": {"num_videos": 4, "mask_ratios": [0.5]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name in ("pipeline", "stages", "mebt", "tokenizer", "models", "dvc.yaml", ".dvc/config"):
        source, target = ROOT / name, root / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    params = YAML().load((ROOT / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    YAML().dump(params, root / "params.yaml")
    for seed in range(3):
        frames = np.stack(list(moving_shapes(60, 64, seed=seed)))
        write_mp4(root / "data" / "fish" / f"{seed}.mp4", frames, fps=25)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def repro(root: Path, *words: str) -> list[str]:
    """Runs `dvc repro`; returns the stages that it ran."""
    here = Path(sys.executable).parent  # Where this environment has dvc and mebt.
    result = subprocess.run(
        [str(here / "dvc"), "repro", *words],
        cwd=root,
        env={**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (line for line in result.stdout.splitlines() if line.startswith("Running stage"))
    return [line.split("'")[1] for line in lines]


def test_everything_once_nothing_twice_and_tokens_are_reused(project: Path) -> None:
    flow = ["extract", "tokenize", "train", "sample", "decode", "evaluate", "report"]
    assert repro(project) == flow
    page = (project / "report.html").read_text()
    assert "<video" in page or "data:image" in page
    assert repro(project) == []
    tokens, stamp = content(project / "tokens"), (project / "tokens/store.json").stat().st_mtime_ns
    params = YAML().load((project / "params.yaml").read_text())
    params["train"]["learning_rate"] *= 2
    YAML().dump(params, project / "params.yaml")
    assert repro(project) == flow[2:]
    assert content(project / "tokens") == tokens
    assert (project / "tokens/store.json").stat().st_mtime_ns == stamp
    charts = project / "pipeline" / "charts.py"
    charts.write_text(charts.read_text() + "# A comment.\n")
    assert repro(project, "--dry") == ["report"]
