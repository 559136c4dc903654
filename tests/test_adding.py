"""`examples/adding/`: what it took to add one of each still applies, and does what it did."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN_TESTS = {
    "metric": "still or rest_is",
    "layer": "gather or operations_are",
    "frames": "test_arrays",
    "command": "test_count",
}
"""Diff -> which tests (`pytest -k`) of the files that it touches are about what it adds."""


def run(folder: Path, *words: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def applied(folder: Path, diff: Path, *more: str) -> None:
    # Whatever changed near it: one line around each change has to be the same.
    run(folder, "git", "apply", "-C1", *more, str(diff))


def test_every_diff_is_linked_and_tried() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    linked = re.findall(r"\.\./examples/adding/(\w+)\.diff", text)
    found = [path.stem for path in (ROOT / "examples/adding").iterdir()]
    assert sorted(linked) == sorted(found) == sorted(OWN_TESTS)


@pytest.mark.parametrize("name", OWN_TESTS)
def test_it_still_applies(name: str) -> None:
    applied(ROOT, ROOT / f"examples/adding/{name}.diff", "--check")


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_TESTS)
def test_it_does_what_it_did(name: str, tmp_path: Path) -> None:
    diff = ROOT / f"examples/adding/{name}.diff"
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for file in filter(lambda file: (ROOT / file).is_file(), listed.split("\0")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    applied(tmp_path, diff)
    tests = re.findall(r"^\+\+\+ b/(tests/\S+)$", diff.read_text("utf-8"), re.MULTILINE)
    chosen = f"test_house or {OWN_TESTS[name]}"
    run(tmp_path, sys.executable, "-m", "pytest", "-q", "tests/test_house.py", *tests, "-k", chosen)
