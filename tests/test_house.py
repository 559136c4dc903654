"""Who may import whom, and what every file keeps to."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "pipeline": {"pipeline"},
    "tokenizer": {"tokenizer"},
    "mebt": {"mebt"},
    "stages": {"pipeline", "tokenizer", "mebt"},
}
SHARED_BY_STAGES = {"stages.launch", "stages.options", "stages.sections"}
SOURCES = [file for package in ALLOWED for file in sorted((ROOT / package).glob("**/*.py"))]


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports from the repository root only"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_house(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    for name in imported_modules(file):
        top = name.partition(".")[0]
        if top in ALLOWED:
            assert top in ALLOWED[package] or name in SHARED_BY_STAGES, f"{file} imports {name}"
        if top == "click":
            assert package == "stages", f"{file} imports click"


def test_both_models_need_torch_and_einops_only() -> None:
    known = {"torch", "einops", "jaxtyping", "safetensors"}
    for package in ("tokenizer", "mebt"):
        for file in (ROOT / package).glob("**/*.py"):
            tops = {name.partition(".")[0] for name in imported_modules(file)}
            foreign = {top for top in tops if top not in known and top != package}
            assert foreign <= set(sys.stdlib_module_names), f"{file}: {foreign}"
