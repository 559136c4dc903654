"""Options and fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

# One thread for this process and for those it starts: sums depend on the number of threads in
# their last bits, and the workers of pytest-xdist share the cores already.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# No test fails because the machine is busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        help="Folder of golden cases to check; tests/golden by default.",
    )


SLOW_CASES = {"sampling_runs"}
"""Golden cases that take longer than all others together."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes one golden test of each case folder."""
    if "golden_case" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        cases = sorted(meta.parent for meta in folder.glob("*/meta.json"))
        marked = [
            pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in SLOW_CASES))
            for case in cases
        ]
        metafunc.parametrize("golden_case", marked)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest test, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_dvc.py")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Lets wrong types through to our own checks, as it is outside tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
