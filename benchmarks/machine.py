"""What the machine itself can do: matrix products and copies, measured beside every benchmark."""

import ctypes
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

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


def product_kernels(
    device: torch.device, *, half: bool = False, side: int = SIDE
) -> dict[str, Callable[[], object]]:
    """Returns the ways in which this machine can multiply two matrices, exactly or in bfloat16."""
    left, right = torch.randn(2, side, side, device=device)
    if half:
        left, right = left.bfloat16(), right.bfloat16()
    out = torch.empty_like(left)
    kernels: dict[str, Callable[[], object]] = {
        "torch's choice": lambda: torch.mm(left, right, out=out)
    }
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return kernels

    def linear(weight: Tensor) -> Callable[[], object]:
        # Private, but it never rounds, and tells what oneDNN could do on every processor.
        return lambda: torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")

    packed = torch.ops.mkldnn._reorder_linear_weight(right, side)
    return {**kernels, "oneDNN": linear(right), "oneDNN, packed": linear(packed)}


def product_rates(
    device: torch.device, *, half: bool = False, side: int = SIDE
) -> dict[str, list[float]]:
    """Returns the operations a second of several products of each kernel, the fastest first."""
    rates = {}
    with torch.inference_mode():
        for name, multiply in product_kernels(device, half=half, side=side).items():
            multiply()  # What is made when a shape is first seen is not measured.
            times = [seconds_of(multiply, device) for _ in range(ROUNDS)]
            rates[name] = [2 * side**3 / time for time in times]
    return dict(sorted(rates.items(), key=lambda item: -max(item[1])))


def copy_rate(device: torch.device, size: int = COPIED_BYTES) -> float:
    """Returns the bytes a second, read and written, of the best of several copies."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(ROUNDS)]
    return 2 * size / min(times)


INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What a processor may have that decides how fast it multiplies, as Linux names it."""


def kind(device: torch.device) -> str:
    """Names the processor that does the work, what it can do, and how much of it works."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found, known = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        known = info.read_text(encoding="utf-8")
        name = re.search(r"^model name\s*:(.*)$", known, re.MULTILINE)
        found = name[1].strip() if name else found
    can = "".join(f", {name}" for name in INSTRUCTIONS if re.search(rf"\b{name}\b", known))
    return f"{found}{can}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def load() -> float | None:
    """Returns how many processes ran or waited in the last minute; this one is among them."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


STATUS, NEW_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""What Linux knows of this process; and where it is told to forget the peak, if it can: proc(5)."""


def memory_now(device: torch.device) -> int:
    """Returns the bytes in use, of a GPU's memory or of the machine's; a new peak begins here.

    What this process has freed and kept for later is given back, so that it does not count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if not NEW_PEAK.exists():
        return memory_peak(device)
    NEW_PEAK.write_text("5", encoding="utf-8")
    return _status("VmRSS")


def memory_peak(device: torch.device) -> int:
    """Returns the most bytes that this process held since `memory_now`; if not on Linux, ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if NEW_PEAK.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    """Returns a number of bytes that Linux knows of this process."""
    status = STATUS.read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    assert found, f"{STATUS} has no {name}"
    return int(found[1]) * 1024
