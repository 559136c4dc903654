"""`dvc repro` in small: everything once, nothing twice, a new learning rate never tokenizes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.config import load_section
from pipeline.video import moving_shapes
from pipeline.writer import write_mp4
from stages.train import TrainConfig
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
    code = ("pipeline", "stages", "mebt", "tokenizer")
    for name in (*code, "models", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in ("dvc.yaml", ".dvc/config", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
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
        env={
            **os.environ,
            "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "",  # Compiled modules appear beside the code that is read.
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (line for line in result.stdout.splitlines() if line.startswith("Running stage"))
    return [line.split("'")[1] for line in lines]


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_models_share_one_token_store(project: Path) -> None:
    folder = project / "examples" / "two-models"
    for name in ("small", "latent"):
        values = YAML().load((folder / f"{name}.yaml").read_text())
        values["model"] |= {"width": 16}
        values["train"] |= SMALL["train"]
        YAML().dump(values, folder / f"{name}.yaml")
    file = "examples/two-models/dvc.yaml"
    small, latent = f"{file}:train@small", f"{file}:train@latent"
    assert repro(project, small)[-1:] == [small]  # After the tokens, if there are none.
    made = content(folder / "runs" / "small") | content(project / "tokens")
    assert repro(project, latent) == [latent]
    assert content(folder / "runs" / "small") | content(project / "tokens") == made
    values["train"]["learning_rate"] *= 2
    YAML().dump(values, folder / "latent.yaml")
    assert repro(project, "--dry", small) == []
    assert repro(project, "--dry", file) == [latent]


def test_the_example_depends_on_what_training_depends_on() -> None:
    reader = YAML(typ="safe")
    ours = reader.load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    example = reader.load((ROOT / "examples/two-models/dvc.yaml").read_text())["stages"]["train"]
    assert example["deps"] == [f"../../{dep}" for dep in ours]
    for name in example["matrix"]["model"]:
        load_section(ROOT / f"examples/two-models/{name}.yaml", "train", TrainConfig)
