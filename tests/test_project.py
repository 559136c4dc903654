"""What the project promises as a whole: its commands, dvc.yaml, params.yaml and README agree."""

import dataclasses
import itertools
import json
import re
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from pipeline.config import SECTIONS, build, load_params, load_section
from pipeline.errors import ConfigError
from stages.__main__ import STAGES, cli
from stages.sample import SampleStageConfig
from stages.sections import OWNERS, owner
from tests import code_deps
from tests.shipped import shipped_files

ROOT = Path(__file__).parent.parent


def place(file: Path) -> str:
    """Names the folder of a file, from the root."""
    return str(file.parent.relative_to(ROOT))


FLOWS = {place(flow): YAML(typ="safe").load(flow.read_text())["stages"] for flow in code_deps.FLOWS}
DVC_STAGES = [
    pytest.param(stage, id=f"{flow}-{name}")
    for flow, stages in FLOWS.items()
    for name, stage in stages.items()
    if stage["cmd"].startswith("mebt ")
]
PARAMS_FILES = [
    ROOT / "params.yaml",
    ROOT / "demo/params.yaml",
    *sorted((ROOT / "configs").glob("*.yaml")),
]


def test_every_section_has_an_owner() -> None:
    assert tuple(OWNERS) == SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("params", PARAMS_FILES, ids=lambda file: f"{place(file)}-{file.stem}")
def test_shipped_params_name_every_key_of_every_section(params: Path, section: str) -> None:
    cls = owner(section)
    load_section(params, section, cls)
    assert set(load_params(params)[section]) == {field.name for field in dataclasses.fields(cls)}


def test_shipped_files_are_what_the_commands_write() -> None:
    for path, text in shipped_files().items():
        assert path.read_text() == text, f"{path}: run `python -m tests.shipped`"


SCHEMA = Draft7Validator(json.loads((ROOT / "params.schema.json").read_text()))


def test_the_demo_draws_the_shipped_fish_by_their_own_values() -> None:
    demo = load_params(ROOT / "demo/params.yaml")["sample"]
    values = load_params(ROOT / "models/fish/params.yaml")["sample"]
    build(SampleStageConfig, values, where="sample")
    assert {key: demo[key] for key in values} == values | {"num_samples": 48}


@pytest.mark.parametrize("params", PARAMS_FILES, ids=lambda file: f"{place(file)}-{file.stem}")
def test_shipped_params_are_of_the_schema(params: Path) -> None:
    assert list(SCHEMA.iter_errors(load_params(params))) == []


@pytest.mark.parametrize(
    ("override", "is_right"),
    [
        ("train.batch_size=many", False),
        ("train.batch_size=1.5", False),
        ("train.batch_size=true", False),
        ("train.batch_sice=16", False),
        ("train.optimizer=sgd", False),
        ("train.cosine=1", False),
        ("train.learning_rate=null", False),
        ("train.learning_rate=1", True),
        ("train.clip_norm=null", True),
        ("tokenizer.downsample=[4,8]", False),
        ("tokenizer.downsample=[4,8,8.5]", False),
        ("sample.temperature=0.5", True),
        ("sample.temperature=[1,0.5]", True),
        ("sample.temperature=[1,0.5,0.2]", False),
        ("extract.filters=deflicker", False),
        ("evaluate.protocol=mebt-16f", True),
        ("evaluate.protocol=mebt-17f", False),
    ],
)
def test_the_schema_refuses_what_the_commands_refuse(override: str, is_right: bool) -> None:
    section = override.partition(".")[0]
    assert SCHEMA.is_valid(load_params(ROOT / "params.yaml", [override])) is is_right
    with nullcontext() if is_right else pytest.raises(ConfigError):
        load_section(ROOT / "params.yaml", section, owner(section), [override])


def test_the_schema_knows_no_other_section_and_lets_one_be_empty() -> None:
    assert SCHEMA.is_valid({"train": None})
    assert not SCHEMA.is_valid({"trian": {}})


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


@pytest.mark.parametrize("stage", DVC_STAGES)
def test_dvc_calls_commands_and_flags_that_exist(stage: dict[str, Any]) -> None:
    words = shlex.split(stage["cmd"])
    command = cli.get_command(None, words[1])  # type: ignore[attr-defined]
    known = {flag for option in command.params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("stage", DVC_STAGES)
def test_dvc_stages_depend_on_what_they_read(stage: dict[str, Any]) -> None:
    words = shlex.split(stage["cmd"])
    paths = {word for flag, word in itertools.pairwise(words) if flag.startswith("--")}
    paths = {word for word in paths if not word.startswith("--")}
    outs = {path for kind in ("outs", "metrics") for path in flat(stage.get(kind, []))}
    written = [flag for flag in ("--out", "--plots") if flag in words]
    assert outs == {words[words.index(flag) + 1] for flag in written}
    read = {*stage["deps"], *flat(stage.get("params", []))}
    for path in paths - outs:
        assert any(dep == path or dep.startswith(f"{path}/") for dep in read), path


def flat(outputs: list[Any]) -> list[str]:
    return [path for output in outputs for path in ([output] if type(output) is str else output)]


@pytest.mark.parametrize("flow", code_deps.FLOWS, ids=place)
def test_dvc_stages_depend_on_the_code_they_run(flow: Path) -> None:
    assert code_deps.rewritten(flow) == flow.read_text(), "run `python -m tests.code_deps`"


def test_training_values_are_no_dependency_of_tokenization() -> None:
    for name in (".", "demo"):
        assert FLOWS[name]["tokenize"]["params"] == ["tokenize"]
        assert "train" in FLOWS[name]["train"]["params"]


def test_metrics_are_left_to_git_which_keeps_those_of_every_experiment() -> None:
    for name in (".", "demo"):
        assert FLOWS[name]["evaluate"]["metrics"] == [{"metrics.json": {"cache": False}}]
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert not [line for line in lines if line[0] != "#" and ("metrics" in line or "lock" in line)]


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


@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    for block in blocks:
        exec(compile(block, "python.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_slurm_job_of_the_readme_asks_to_go_on_after_75_only(tmp_path: Path, code: int) -> None:
    (job,) = re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs/several-gpus.md").read_text(), re.DOTALL
    )
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


def test_the_container_is_of_the_python_and_the_targets_that_there_are() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    (version,) = re.findall(r"\(Python (\d+\.\d+)\)", (ROOT / "constraints.txt").read_text("utf-8"))
    assert f"FROM python:{version}-slim" in lines
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv")
    assert "RUN make .venv/.demo" in lines and "DEMO := .venv/.demo" in makefile
    assert 'CMD ["make", "demo"]' in lines and re.search(r"^demo: \$\(DEMO\)", makefile, re.M)
    kept_out = (ROOT / ".dockerignore").read_text("utf-8").split()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not [f for f in tracked.stdout.split() if f.split("/")[0] in kept_out or f in kept_out]


def test_a_shell_completes_names_of_commands() -> None:
    typed = {"_MEBT_COMPLETE": "bash_complete", "COMP_WORDS": "mebt tok", "COMP_CWORD": "1"}
    result = CliRunner().invoke(cli, prog_name="mebt", env=typed)
    assert result.output.split() == ["plain,tokenize", "plain,tokens"]
