"""Who may import whom, and what every file keeps to."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "pipeline": {"pipeline"},
    "weights": {"weights"},
    "tokenizer": {"tokenizer", "weights"},
    "mebt": {"mebt", "weights"},
    "stages": {"pipeline", "tokenizer", "mebt"},
}
ROOMS = {
    "storage": set(),
    "frames": {"storage"},
    "store": {"storage"},
    "exchange": {"storage", "store"},
    "training": {"storage"},
    "published": {"storage"},
    "video": {"storage", "frames"},
    "windows": {"storage", "frames", "video", "store"},
    "params": {"storage", "frames", "video"},
    "sharing": {"storage", "training"},
    "evaluation": {"storage", "video", "store", "published"},
    "editing": {"storage", "frames", "video"},
    "forecast": {"storage", "frames", "video", "store", "windows", "params"},
    "report": {"storage", "frames", "video", "store", "evaluation"},
    "play": set(),
}
"""Rooms of `pipeline/`, and which others each may import; all may import the files beside them."""
SHARED_BY_STAGES = {
    f"stages.{name}"
    for name in (
        "launch",
        "options",
        "frame_options",
        "sections",
        "previews",
        "fitting",
        "given",
        "conditioned",
        "conditions",
        "asked",
        "sample_store",
        "held_out",
        "described",
        "mebt_task",
        "tokenizer_task",
        "token_files",
        "forecast",
        "keys",
        "trial",
        "editing",
        "edit_options",
        "run_model",
    )
}
SOURCES = [file for package in ALLOWED for file in sorted((ROOT / package).glob("**/*.py"))]


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
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


def room_of(parts: Sequence[str]) -> str | None:
    return parts[1] if parts[0] == "pipeline" and (ROOT / "pipeline" / parts[1]).is_dir() else None


@pytest.mark.parametrize(
    "room", sorted(path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py"))
)
def test_rooms_import_those_below_them(room: str) -> None:
    for file in (ROOT / "pipeline" / room).glob("**/*.py"):
        for name in imported_modules(file):
            other = room_of([*name.split("."), ""])
            assert other in {None, room, *ROOMS[room]}, f"{file} imports {name}"
            assert file.name != "__init__.py", f"{file} is read by whoever needs a file beside it"


def test_files_beside_the_rooms_need_none_but_storage() -> None:
    for file in (ROOT / "pipeline").glob("*.py"):
        for name in imported_modules(file):
            assert room_of([*name.split("."), ""]) in {None, "storage"}, f"{file} imports {name}"


def test_both_models_need_torch_and_einops_only() -> None:
    known = {"torch", "einops", "jaxtyping", "safetensors", "weights"}
    for package in ("tokenizer", "mebt", "weights"):
        for file in (ROOT / package).glob("**/*.py"):
            tops = {name.partition(".")[0] for name in imported_modules(file)}
            foreign = {top for top in tops if top not in known and top != package}
            assert foreign <= set(sys.stdlib_module_names), f"{file}: {foreign}"


def names_no_encoding(call: ast.Call) -> bool:
    """Says whether a call opens a text file with the encoding of the locale."""
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id == "open"
    if not isinstance(call.func, ast.Attribute):
        return False
    values = [arg.value if isinstance(arg, ast.Constant) else None for arg in call.args]
    if call.func.attr == "open" and ast.unparse(call.func.value) not in OTHER_OPENERS:
        return all(isinstance(mode, str) and "b" not in mode for mode in values)
    return (call.func.attr, len(values)) in (("read_text", 0), ("write_text", 1))


OTHER_OPENERS = ("Image", "av", "os", "tarfile")


@pytest.mark.parametrize("folder", [*ALLOWED, "benchmarks", "demo"])
def test_text_files_name_their_encoding(folder: str) -> None:
    for file in (ROOT / folder).glob("**/*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Call)]
        for call in filter(names_no_encoding, calls):
            pytest.fail(f"{file}, line {call.lineno}: {ast.unparse(call)} depends on the locale")
