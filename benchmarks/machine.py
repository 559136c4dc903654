"""What the machine itself can do: matrix products and copies, measured beside every benchmark."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

SIDE = 3072
"""Rows and columns of the matrices whose product sets the pace."""
COPIED_BYTES = 1 << 28
ROUNDS = 3


def finish(device: torch.device) -> None:
    """Waits until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Returns how long an action takes on the clock."""
    finish(device)
    began = time.perf_counter()
    action()
    finish(device)
    return time.perf_counter() - began


def product_rates(device: torch.device, side: int = SIDE) -> list[float]:
    """Returns the operations a second of each of several matrix products in float32."""
    left, right = torch.randn(2, side, side, device=device)
    out = torch.empty_like(left)
    times = [seconds_of(lambda: torch.mm(left, right, out=out), device) for _ in range(ROUNDS)]
    return [2 * side**3 / time for time in times]


def copy_rate(device: torch.device, size: int = COPIED_BYTES) -> float:
    """Returns the bytes a second, read and written, of the best of several copies."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(ROUNDS)]
    return 2 * size / min(times)


def kind(device: torch.device) -> str:
    """Names the processor that does the work, and how much of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        found = names[0].partition(":")[2].strip() if names else found
    return f"{found}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def memory_now(device: torch.device) -> int:
    """Returns the bytes that this process holds: of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    if not status.exists():
        return memory_peak(device)
    return int(status.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def memory_peak(device: torch.device) -> int:
    """Returns the most bytes that this process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
