import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pipeline.tuning import ENVIRONMENT, KEPT, LARGE, keep_freed, tune_process
from stages.__main__ import cli


@pytest.mark.parametrize(
    ("libc", "asked", "kept"),
    [("glibc", "", LARGE), ("glibc", "2", 2 << 20), ("glibc", "4096", LARGE), ("another", "2", 0)],
)
def test_glibc_is_told_what_to_keep(
    libc: str, asked: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What that does is seen in a training step alone, which has a third of the page faults: single
    # blocks that are freed and asked for again find their places, or not, by chance.
    told = []
    known = {"mallopt": lambda *values: told.append(values)} if libc == "glibc" else {}
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(**known))
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "kept")
    monkeypatch.setenv(KEPT, asked)
    tune_process()
    in_malloc_h = {"M_TRIM_THRESHOLD": -1, "M_MMAP_THRESHOLD": -3}
    expected = [
        (in_malloc_h["M_MMAP_THRESHOLD"], kept),
        (in_malloc_h["M_TRIM_THRESHOLD"], 4 * kept),
    ]
    assert told == (expected if libc == "glibc" else [])
    assert {os.environ[name] for name in ENVIRONMENT} == {"kept"}


def test_windows_has_no_library_of_c_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_by_name(name: str | None) -> SimpleNamespace:
        raise TypeError("bad argument type for built-in operation")

    monkeypatch.setattr(ctypes, "CDLL", only_by_name)
    monkeypatch.setattr(sys, "platform", "win32")
    keep_freed(LARGE)


def test_what_to_keep_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT, "2GB")
    result = CliRunner().invoke(cli, ["init", "--out", "params.yaml"])
    assert result.exit_code == 1
    assert "MEBT_KEEP_MB is '2GB'" in result.output


SAID = """
import os, sys
import stages.__main__
assert "torch" not in sys.modules
sys.argv = ["mebt", "sample"]
try:
    stages.__main__.cli()
except SystemExit:
    pass
assert "torch" in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"), os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "turns"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_libraries_are_told_before_torch_loads(own: dict[str, str], turns: str) -> None:
    names = (*ENVIRONMENT, "OMP_WAIT_POLICY")
    others = {key: value for key, value in os.environ.items() if key not in names}
    made = subprocess.run(
        [sys.executable, "-c", SAID],
        capture_output=True,
        text=True,
        check=True,
        env={**others, **own},
    )
    assert made.stdout.split()[-2:] == [turns, "256"]
