"""One small flow per test process, and copies of it to break."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.small import Flow


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """The flow up to its samples; only read it."""
    flow = Flow(tmp_path_factory.mktemp("flow"))
    for stage in ("extract", "tokenize", "train", "sample"):
        flow.ok(stage)
    return flow


@pytest.fixture
def flow(made: Flow, tmp_path: Path) -> Flow:
    """A copy of the flow to change at will."""
    shutil.copytree(made.root, tmp_path / "flow")
    copied = Flow.__new__(Flow)
    copied.root = tmp_path / "flow"
    return copied
