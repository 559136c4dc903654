import ctypes
import subprocess
import sys

import pytest

GAPS = """
import sys
from pathlib import Path
import numpy as np
from pipeline.memory import give_back_large_blocks
if sys.argv[1] == "give back":
    give_back_large_blocks()
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
