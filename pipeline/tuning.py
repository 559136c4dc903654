"""Tunes glibc's malloc, huge pages, and how threads wait for one another."""

import ctypes
import os
import sys
from collections.abc import Mapping

from pipeline.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGE, MEDIUM, SMALL = 128 << 20, 32 << 20, 8 << 20
"""Bytes. Blocks up to this size are kept when they are freed: a new one costs a page fault every
few kB, and training makes thousands of some MB in every step, a tokenizer some of 35 to 70. Where a
size is never asked for again, as in sampling, large ones leave gaps that nothing fits into: keeping
them took twice the memory there and saved a twentieth of the time. Small ones alone are kept for
those who train with less memory on purpose: half of it, for a tenth to a fifth more time."""
KEPT = "MEBT_KEEP_MB"
"""Where a user says how many MB a block has at most that is kept, if it is less than that."""
ENVIRONMENT = {
    # Threads of GCC's OpenMP that wait turn so often before they sleep. By itself it is 100 times
    # as often: two samplers on the same two cores took 37 s for 1.7 s of work. Without any turn
    # they took 1.5 s, but a sampler alone an eighth more.
    "GOMP_SPINCOUNT": "2000",
    # Kernels that oneDNN keeps. A training step needs some hundred, and the next one others, as
    # another share is masked; by itself it keeps 1024, up to 1 MB each, in between the tensors.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
}
"""What libraries read when torch is loaded; what a user has set stays."""


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Returns what is to be added to a user's own variables."""
    asked = own.get("OMP_WAIT_POLICY")  # Says the same in other words; the number would win.
    return {
        name: value
        for name, value in ENVIRONMENT.items()
        if name not in own and not (asked and name == "GOMP_SPINCOUNT")
    }


def tune_process() -> None:
    """Makes work on a CPU fast; call it before torch is imported.

    glibc keeps what is freed: left to itself it gives more back, and training takes a sixth longer.
    """
    for name, value in environment(os.environ).items():
        os.environ[name] = value
    keep_freed(LARGE)


def keep_freed(size: int) -> None:
    """Lets blocks of up to so many bytes be kept from now on; another malloc is left as it is.

    Raises `ConfigError` if what a user asked for is no number.
    """
    asked = os.environ.get(KEPT)
    if asked:
        if not asked.isdecimal():
            raise ConfigError(f"{KEPT} is {asked!r}; set it to a whole number of MB, or unset it.")
        size = min(size, int(asked) << 20)
    mallopt = None if sys.platform == "win32" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, size)
        mallopt(M_TRIM_THRESHOLD, 4 * size)  # Of what lies free together at the heap's end.
