"""How this process asks the system for memory."""

import ctypes

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
LARGE = 12 << 20
"""Bytes. Smaller blocks are worth keeping: a new one costs a page fault every few kB."""


def give_back_large_blocks() -> None:
    """Lets glibc return large blocks to the system as soon as they are freed.

    Left to itself it learns to keep blocks of up to 32 MB, and then activations of long videos lie
    scattered between gaps that nothing fits into: training on 128 frames took twice the memory.
    Does nothing where there is another malloc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
