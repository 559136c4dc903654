"""Which code each stage of a dvc.yaml depends on: `python -m tests.code_deps` writes the lists.

A stage is run again when code changes that has a say in what it makes, and for no other.
"""

import ast
import os
import re
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
ROOMS = sorted((ROOT / "pipeline").glob("*/__init__.py"))
FLOWS = [ROOT / "dvc.yaml", ROOT / "demo/dvc.yaml", ROOT / "examples/two-models/dvc.yaml"]
WHOLE = ("mebt", "tokenizer", "weights", *(f"pipeline/{path.parent.name}" for path in ROOMS))
"""Folders that a stage depends on as a whole if at all."""
CODE = ("mebt", "tokenizer", "weights", "stages", "pipeline")
PLUMBING = {
    *("stages/launch.py", "stages/options.py", "pipeline/storage"),
    *(f"pipeline/{name}.py" for name in ("background", "config", "device", "errors", "progress")),
}
"""None of these has a say in what a stage makes."""


def imported(file: Path, seen: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """Returns a module of ours and every module of ours that it imports, directly or not."""
    seen |= {file}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for path in (ROOT.joinpath(*name.split(".")) for name in names):
            for found in (path.with_suffix(".py"), path / "__init__.py"):
                if found.exists() and found not in seen:
                    seen = imported(found, seen)
    return seen


def code_of(command: str) -> list[str]:
    """Returns the folders and files that a `mebt` command depends on, from the root."""
    stage = ROOT / "stages" / f"{command.replace('-', '_')}.py"
    files = {str(file.relative_to(ROOT)) for file in imported(stage)}
    needed = {next((f for f in WHOLE if file.startswith(f"{f}/")), file) for file in files}
    return sorted(needed - PLUMBING, key=_folders_first)


def _folders_first(path: str) -> tuple[bool, bool, str]:
    return path.endswith(".py"), not path.startswith("stages/"), path


def dependencies(flow: Path, stage: dict[str, Any]) -> list[str]:
    """Returns what a stage of a flow is to depend on: its data as listed, then its code."""
    up = os.path.relpath(ROOT, flow.parent)
    code = [os.path.normpath(f"{up}/{file}") for file in code_of(shlex.split(stage["cmd"])[1])]
    starts = [os.path.normpath(f"{up}/{name}") for name in CODE]
    data = [d for d in stage["deps"] if not any(f"{d}/".startswith(f"{s}/") for s in starts)]
    return [*data, *code]


def rewritten(flow: Path) -> str:
    """Returns the text of a flow with its lists of code as they are to be."""
    text = flow.read_text(encoding="utf-8")
    lists = [
        dependencies(flow, stage) if stage["cmd"].startswith("mebt ") else stage["deps"]
        for stage in YAML(typ="safe").load(text)["stages"].values()
    ]
    found = iter(lists)
    made = re.sub(
        r"(?<=    deps:\n)(?:      - .*\n)+",
        lambda _: "".join(f"      - {dep}\n" for dep in next(found)),
        text,
    )
    assert next(found, None) is None, f"{flow}: not every stage has a list of dependencies"
    return made


if __name__ == "__main__":
    for flow in FLOWS:
        flow.write_text(rewritten(flow), encoding="utf-8")
