"""Numbers that the published code computed, checked case by case.

A case is a folder with a `meta.json`; its `kind` says which check in `golden_checks/` it is for.
`pytest tests/test_golden.py --golden DIR` checks another folder of the same layout.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import golden_checks

CHECKS: dict[str | None, Callable[[Path], None]] = {}
for _module in pkgutil.iter_modules(golden_checks.__path__):
    _found = importlib.import_module(f"tests.golden_checks.{_module.name}")
    CHECKS.update(getattr(_found, "CHECKS", {}))


def test_golden_numbers_hold(golden_case: Path) -> None:
    kind = json.loads((golden_case / "meta.json").read_text()).get("kind")
    if kind not in CHECKS:
        pytest.fail(f"{golden_case.name}: no check knows the kind {kind!r}.")
    CHECKS[kind](golden_case)


def test_golden_folder_holds_cases(request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--golden")
    assert list(folder.glob("*/meta.json")), f"{folder} holds no golden case"
