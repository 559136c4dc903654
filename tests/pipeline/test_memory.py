import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

GAPS = """
import sys
from pathlib import Path
import numpy as np
from pipeline.memory import tune_memory
if sys.argv[1] == "give back":
    tune_memory()
np.ones(30 << 20, np.uint8)  # From here on glibc would keep blocks of this size.
blocks = [np.ones(24 << 20, np.uint8) for _ in range(10)]
del blocks[:-1]
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")
def test_large_blocks_go_back_to_the_system() -> None:
    held = {}
    for how in ("give back", "keep"):
        made = subprocess.run(
            [sys.executable, "-c", GAPS, how], capture_output=True, text=True, check=True
        )
        held[how] = int(made.stdout)
    assert held["give back"] < held["keep"] - 100


FAULTS = """
import resource, sys, torch
from pipeline.memory import tune_memory
tune_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the system gives huge pages to all, or to none",
)
def test_tensors_lie_in_huge_pages() -> None:
    faults = {}
    for wanted in ("0", "1"):
        made = subprocess.run(
            [sys.executable, "-c", FAULTS],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "THP_MEM_ALLOC_ENABLE": wanted},
        )
        faults[wanted] = int(made.stdout)
    assert faults["1"] < faults["0"]
