import ctypes
import os
import subprocess
import sys

import pytest

from pipeline.tuning import ENVIRONMENT

FAULTS = """
import resource, sys, torch
from pipeline.tuning import tune_process
if sys.argv[1] == "tuned":
    tune_process()
for _ in range(8):  # A freed block is too small for its like until those beside it are free, too.
    blocks = [torch.ones(24 << 20, dtype=torch.uint8) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")
def test_freed_blocks_are_kept() -> None:
    faults = {}
    for how in ("as it is", "tuned"):
        command = [sys.executable, "-c", FAULTS, how]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[how] = int(made.stdout)
    assert faults["tuned"] < faults["as it is"] - 12 * (24 << 20) // os.sysconf("SC_PAGESIZE")


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
