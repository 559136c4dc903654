"""What the project promises as a whole: its commands, dvc.yaml, params.yaml and README agree."""

import ast
import dataclasses
import importlib
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.config import SECTIONS, load_params, load_section
from pipeline.errors import ConfigError
from stages.__main__ import STAGES, cli

ROOT = Path(__file__).parent.parent
DVC_STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
OWNERS = {
    "extract": "pipeline.video.ExtractConfig",
    "tokenizer": "tokenizer.config.VQGANConfig",
    "fit_tokenizer": "stages.fit_tokenizer.FitTokenizerConfig",
    "tokenize": "pipeline.windows.TokenizeConfig",
    "model": "mebt.config.MeBTShape",
    "train": "stages.train.TrainConfig",
    "sample": "stages.sample.SampleStageConfig",
    "decode": "stages.decode.DecodeConfig",
    "evaluate": "stages.evaluate.EvaluateConfig",
}
PLUMBING = ["stages/launch.py", "stages/options.py"]
PLUMBING += [*(f"pipeline/{n}.py" for n in ("config", "errors", "files", "gpu"))]
PLUMBING += [
    *("pipeline/profiling.py", "pipeline/progress.py"),
    *("pipeline/signals.py", "pipeline/storage.py", "pipeline/writing.py"),
]  # None of these has a say in what a stage makes.
PARAMS_FILES = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


def owner(section: str) -> type:
    module, _, name = OWNERS[section].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def imported(file: Path, seen: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """Returns a module of ours and every module of ours that it imports, directly or not."""
    seen |= {file}
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for path in (ROOT.joinpath(*name.split(".")) for name in names):
            for found in (path.with_suffix(".py"), path / "__init__.py"):
                if found.exists() and found not in seen:
                    seen = imported(found, seen)
    return seen


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("params", PARAMS_FILES, ids=lambda file: file.stem)
def test_shipped_params_name_every_key_of_every_section(params: Path, section: str) -> None:
    cls = owner(section)
    load_section(params, section, cls)
    assert set(load_params(params)[section]) == {field.name for field in dataclasses.fields(cls)}


ABSURD = (
    *("extract.size", "tokenize.size", "tokenize.shard_windows"),
    *("sample.num_samples", "sample.draft_steps", "sample.total_frames"),
    *("sample.revise_rounds", "sample.revise_groups"),
    *("decode.columns", "decode.sheet_videos", "evaluate.runs"),
)


@pytest.mark.parametrize("key", ABSURD)
def test_a_value_that_no_machine_could_bear_is_refused(key: str) -> None:
    section, _, name = key.partition(".")
    override = f"{key}=1000000000"
    with pytest.raises(ConfigError, match=rf"{section}: {name} must be at most .*1000000000"):
        load_section(ROOT / "params.yaml", section, owner(section), [override])


@pytest.mark.parametrize("name", DVC_STAGES)
def test_dvc_calls_commands_and_flags_that_exist(name: str) -> None:
    words = shlex.split(DVC_STAGES[name]["cmd"])
    assert words[:2] == ["mebt", name]
    command = cli.get_command(None, name)  # type: ignore[attr-defined]
    known = {flag for option in command.params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", DVC_STAGES)
def test_dvc_stages_depend_on_what_they_read(name: str) -> None:
    stage = DVC_STAGES[name]
    words = shlex.split(stage["cmd"])
    paths = {word for flag, word in itertools.pairwise(words) if flag.startswith("--")}
    paths = {word for word in paths if not word.startswith("--")}
    written = {words[words.index("--out") + 1]}
    known = {str(dep) for dep in stage["deps"]}
    for path in paths - written:
        assert any(dep == path or dep.startswith(f"{path}/") for dep in known), path
    code = imported(ROOT / "stages" / f"{name}.py") - {ROOT / file for file in PLUMBING}
    needed = {str(file.relative_to(ROOT)) for file in code}
    for file in needed:
        assert any(file == dep or file.startswith(f"{dep}/") for dep in known), file
    assert {dep for dep in known if dep.endswith(".py")} <= needed


def test_training_values_are_no_dependency_of_tokenization() -> None:
    assert DVC_STAGES["tokenize"]["params"] == ["tokenize"]
    assert "train" in DVC_STAGES["train"]["params"]


@pytest.mark.parametrize("name", STAGES)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"mebt {name}" in result.output


def test_the_overview_names_every_stage() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in STAGES:
        assert re.search(rf"^  {name} +\w", result.output, re.MULTILINE), name


def test_wrong_usage_is_exit_code_2() -> None:
    assert CliRunner().invoke(cli, ["train", "--no-such-flag"]).exit_code == 2


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    exec(compile(blocks[0], "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_slurm_job_of_the_readme_asks_to_go_on_after_75_only(tmp_path: Path, code: int) -> None:
    (job,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    words = shlex.split(next(line for line in job.splitlines() if line.startswith("srun ")))
    assert words[1:3] == ["mebt", "train"]
    train = cli.get_command(None, "train")  # type: ignore[attr-defined]
    known = {flag for option in train.params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= known
    for name, line in {"srun": f"exit {code}", "scontrol": f'echo "$@" > {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "42"}
    assert subprocess.run(["bash", "-c", job], env=path, check=False).returncode == code
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 42\n" if code == 75 else "")
