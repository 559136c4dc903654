"""`dvc repro` and experiments in small: everything once, nothing twice, every number kept."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.config import load_section
from pipeline.training.plots import Plots
from pipeline.video.synthetic import moving_shapes
from pipeline.video.writer import write_mp4
from stages.mebt_task import TrainConfig
from tests.helpers.small import content

ROOT = Path(__file__).parent.parent
SMALL = {
    "extract": {"size": 16, "test_share": 0.5},
    "tokenizer": {"codebook_size": 16, "embedding_dim": 4, "width": 4},
    "fit_tokenizer": {"max_steps": 2, "validation_windows": 2},
    "tokenize": {"size": 16, "hop": 4, "shard_windows": 8, "chunk_windows": 8},
    "model": {"layers": ["encode", "decode"], "width": 16, "num_heads": 2, "num_latents": 4},
    "train": {"max_steps": 4, "batch_size": 2, "checkpoint_every": 2, "validation_windows": 4},
    "sample": {"num_samples": 4, "draft_steps": 2, "revise_rounds": 1},
    "evaluate": {"num_videos": 4, "mask_ratios": [0.5]},
}
FILES = ("dvc.yaml", "params.yaml", "params.schema.json")
DEMO_MAKES = ("data", "frames", "tokens", "run", "samples", "plots", "metrics.json", "dvc.lock")
FLOW = ["extract", "fit-tokenizer", "tokenize", "train", "sample", "decode", "evaluate", "report"]


def run(root: Path, *words: str) -> str:
    """Runs a command in the project; returns what it says."""
    here = Path(sys.executable).parent  # Where this environment has dvc and mebt.
    result = subprocess.run(
        [str(here / words[0]) if words[0] in ("dvc", "mebt") else words[0], *words[1:]],
        cwd=root,
        env={
            **os.environ,
            "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "DVC_NO_ANALYTICS": "1",  # A folder without our .dvc/config would send some.
            "PYTHONDONTWRITEBYTECODE": "",  # Compiled modules appear beside the code that is read.
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def stages_run(output: str) -> list[str]:
    """Returns the stages that DVC says it ran."""
    lines = (line for line in output.splitlines() if line.startswith("Running stage"))
    return [line.split("'")[1] for line in lines]


def repro(root: Path, *words: str) -> list[str]:
    return stages_run(run(root, "dvc", "repro", *words))


def experiments(root: Path) -> list[dict[str, str]]:
    """Returns the rows of `dvc exp show`, the workspace's and the commit's too."""
    table = run(root, "dvc", "exp", "show", "--csv")
    return list(csv.DictReader(io.StringIO(table)))


def make_small(root: Path) -> None:
    params = YAML().load((root / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    YAML().dump(params, root / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with three videos in `videos`."""
    root = tmp_path_factory.mktemp("project")
    code = ("pipeline", "stages", "mebt", "tokenizer", "weights")
    for name in (*code, "models", "examples", "demo"):
        made = DEMO_MAKES if name == "demo" else ()
        left_out = shutil.ignore_patterns("__pycache__", *made)
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvcignore", ".gitignore", *FILES):
        shutil.copy(ROOT / name, root / name)
    for seed in range(3):
        frames = np.stack(list(moving_shapes(60, 64, seed=seed)))
        write_mp4(root / "videos" / f"{seed}.mp4", frames, fps=25)
    run(root, "git", "init", "--quiet")
    for key, value in (("email", "me@here"), ("name", "Me"), ("commit.gpgsign", "false")):
        run(root, "git", "config", key if "." in key else f"user.{key}", value)
    return root


@pytest.fixture(scope="module")
def flow(project: Path) -> tuple[Path, list[str]]:
    """The project after the docs' commands, up to the first experiment; and what these did."""
    text = (ROOT / "docs/experiments.md").read_text()
    block = re.findall(r"```\n(.*?)```", text, re.DOTALL)[0]
    said = []
    for line in block.splitlines():
        said.append(run(project, *shlex.split(line)))
        if line.startswith("mebt init"):
            make_small(project)
    return project, said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_once_nothing_twice_and_tokens_are_reused(flow: tuple[Path, list[str]]) -> None:
    project, said = flow
    first, second = [ran for ran in map(stages_run, said) if ran]
    assert sorted(first) == sorted(FLOW)
    assert sorted(second) == sorted(FLOW[3:])  # The experiment's learning rate makes no new tokens.
    page = (project / "report.html").read_text()
    assert "<video" in page or "data:image" in page
    assert repro(project) == []
    charts = project / "pipeline" / "report" / "charts.py"
    before = charts.read_text()
    charts.write_text(before + "# A comment.\n")
    assert repro(project, "--dry") == ["report"]
    charts.write_text(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_experiments_keep_their_numbers(flow: tuple[Path, list[str]]) -> None:
    project, said = flow
    assert "token_loss_mask_50" in said[-3]  # `dvc metrics diff`
    made = content(project / "tokens") | content(project / "run")
    run(project, "dvc", "exp", "run", "--temp", "-S", "train.learning_rate=0.003", "evaluate")
    assert content(project / "tokens") | content(project / "run") == made
    rows = [row for row in experiments(project) if row["typ"].startswith("branch")]
    rate, loss = "params.yaml:train.learning_rate", "metrics.token_loss_mask_50"
    losses = {float(row[rate]): float(row[loss]) for row in rows}
    assert losses.keys() == {0.002, 0.003}
    assert losses[0.002] != losses[0.003]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_curves_of_experiments_are_drawn_over_one_another(flow: tuple[Path, list[str]]) -> None:
    project, said = flow
    assert "index.html" in said[-1]  # `dvc plots diff`
    assert (project / "dvc_plots/index.html").exists()
    output = run(project, "dvc", "plots", "diff", "HEAD", "workspace", "--json")
    rates = json.loads(output)["data"]["MeBT learning rate"][0]["content"]["data"]["values"]
    by_commit: dict[str, list[float]] = {}
    for point in rates:
        by_commit.setdefault(point["rev"], []).append(float(point["learning_rate"]))
    assert by_commit.keys() == {"HEAD", "workspace"}
    assert by_commit["HEAD"] != by_commit["workspace"]


def test_dvc_draws_the_logs_that_are_shipped(tmp_path: Path) -> None:
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    YAML().dump({"plots": plots}, tmp_path / "dvc.yaml")
    for name, file in (("train", "fish/metrics.jsonl"), ("fit-tokenizer", "fish-64.jsonl")):
        lines = [json.loads(line) for line in (ROOT / "models" / file).read_text().splitlines()]
        Plots(tmp_path / "plots" / name, [], lines)
    run(tmp_path, "dvc", "init", "--no-scm", "--quiet")
    drawn = json.loads(run(tmp_path, "dvc", "plots", "show", "--json"))
    assert not drawn.get("errors")
    for plot in plots:
        ((name, values),) = plot.items()
        (shown,) = drawn["data"].pop(name)
        points = shown["content"]["data"]["values"]
        columns = {*values["y"].values()}
        y = columns.pop() if len(columns) == 1 else "dvc_inferred_y_value"
        rows = [(tmp_path / table).read_text().count("\n") - 1 for table in values["y"]]
        assert len([float(point[y]) for point in points]) == sum(rows) >= 5
    assert not drawn["data"]


@pytest.mark.parametrize("file", ["dvc.yaml", "demo/dvc.yaml"])
def test_curves_are_of_tables_that_stages_write(file: str) -> None:
    flow = YAML(typ="safe").load((ROOT / file).read_text())
    outs = {
        name for stage in flow["stages"].values() for out in stage.get("outs", ()) for name in out
    }
    for plot in flow["plots"]:
        for values in plot.values():
            for table in values["y"]:
                assert table.rpartition("/")[0] in outs


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_models_share_one_token_store(flow: tuple[Path, list[str]]) -> None:
    project, _ = flow
    folder = project / "examples" / "two-models"
    for name in ("small", "latent"):
        values = YAML().load((folder / f"{name}.yaml").read_text())
        values["model"] |= {"width": 16}
        values["train"] |= SMALL["train"]
        YAML().dump(values, folder / f"{name}.yaml")
    file = "examples/two-models/dvc.yaml"
    small, latent = f"{file}:train@small", f"{file}:train@latent"
    assert repro(project, small) == [small]
    made = content(folder / "runs" / "small") | content(project / "tokens")
    assert repro(project, latent) == [latent]
    assert content(folder / "runs" / "small") | content(project / "tokens") == made
    values["train"]["learning_rate"] *= 2
    YAML().dump(values, folder / "latent.yaml")
    assert repro(project, "--dry", small) == []
    assert repro(project, "--dry", file) == [latent]


def test_the_example_trains_with_keys_that_exist() -> None:
    example = YAML(typ="safe").load((ROOT / "examples/two-models/dvc.yaml").read_text())
    for name in example["stages"]["train"]["matrix"]["model"]:
        load_section(ROOT / f"examples/two-models/{name}.yaml", "train", TrainConfig)
