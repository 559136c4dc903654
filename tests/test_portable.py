"""Commands start on systems that lack what only POSIX has, such as Windows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = sorted(file.stem for file in (ROOT / "stages").glob("*.py"))
START = """
import importlib, os, signal, sys
import torch  # Decides by the name of the system what to ask it for.

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for module, names in {
    os: ("fork", "getuid", "register_at_fork", "sched_getaffinity", "statvfs", "sysconf"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "pthread_sigmask"),
}.items():
    for name in names:
        delattr(module, name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "".join(f"importlib.import_module('stages.{name}')\n" for name in STAGES),
        "from stages.__main__ import cli; cli(['init', '--out', sys.argv[1]])",
    ],
    ids=["imports", "a command"],
)
def test_commands_start_without_what_windows_lacks(lines: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", START + lines, str(tmp_path / "params.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
