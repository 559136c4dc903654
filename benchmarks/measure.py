"""Measures one case in this process, so that its memory is its own: `python -m benchmarks.measure`.

Prints one line of JSON, for `python -m benchmarks` to collect.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch

from benchmarks.cases import CASES, GROWTH
from benchmarks.machine import (
    COPIED_BYTES,
    SIDE,
    copy_rate,
    kind,
    load,
    memory_now,
    memory_peak,
    product_rates,
    seconds_of,
)
from benchmarks.work import Case, Setting
from pipeline.tuning import KEPT, environment, tune_process

ROOT = Path(__file__).parent.parent
MAX_ROUNDS, MAX_SECONDS = 5, 20.0
"""The best of so many rounds counts; no new one begins after so many seconds."""


def best_seconds(
    action: Callable[[], object], device: torch.device, first: tuple[float, ...] = ()
) -> float:
    """Returns the fewest seconds of several rounds, of which there may have been a first."""
    times = list(first)
    while len(times) < MAX_ROUNDS and sum(times) < MAX_SECONDS:
        times.append(seconds_of(action, device))
    return min(times)


def measure(
    case: Case, device: torch.device, *, half: bool = False, small: bool = False
) -> dict[str, Any]:
    """Returns a case's row: its seconds, the limit's, memory, and the rates of the machine."""
    side, copied = (64, 1 << 16) if small else (SIDE, COPIED_BYTES)
    rates = product_rates(device, half=half, side=side)
    with tempfile.TemporaryDirectory() as folder:
        work = case.prepare(Setting(device=device, folder=Path(folder), small=small, half=half))
        work.first()
        before = memory_now(device)
        first = seconds_of(work.run, device)
        extra = memory_peak(device) - before
        seconds = best_seconds(work.run, device, (first,))
        beside = best_seconds(work.beside, device) if work.beside else 0.0
    for name, again in product_rates(device, half=half, side=side).items():
        rates[name] += again
    fastest = max(rates.values(), key=max)
    copies = copy_rate(device, copied)  # Only now: its memory would hide that of small work.
    limit = beside or work.operations / max(fastest) or work.bytes / copies
    usual = work.operations / harmonic_mean(fastest)
    return {
        "name": case.name,
        "precision": "bf16-mixed" if half else "32-true",
        "factor": round(seconds if case.in_seconds else seconds / limit, 4),
        "target": case.target,
        "steady": round(seconds / usual, 4) if usual else None,
        "extra_gb": round(extra / 1e9, 3),
        "extra_gb_target": case.extra_gb_target,
        "unit": "seconds" if case.in_seconds else "times the limit",
        "seconds": round(seconds, 9),
        "limit_seconds": round(limit, 9),
        "gflops": round(max(fastest) / 1e9, 1),
        "mean_gflops": round(harmonic_mean(fastest) / 1e9, 1),
        "kernels": {name: round(max(found) / 1e9, 1) for name, found in rates.items()},
        "gb_per_second": round(copies / 1e9, 1),
        "machine": kind(device),
        "load": load(),
    }


def in_own_process(
    case: Case,
    device: str,
    *,
    half: bool = False,
    small: bool = False,
    threads: int | None = None,
    keep_mb: int | None = None,
    build: Path = ROOT,
) -> dict[str, Any]:
    """Returns what `measure` returns, in a new process. What goes wrong there is shown as it is.

    `build` is the checkout whose benchmark of that name is run, with the models that stand there.
    """
    command = [sys.executable, "-m", "benchmarks.measure", case.name, "--device", device]
    command += ["--half"] * half + ["--small"] * small
    # As the commands do. It is too late for this process, which has loaded torch.
    variables = {**os.environ, **(environment(os.environ) if build == ROOT else {})}
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    if keep_mb:
        variables[KEPT] = str(keep_mb)
    made = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=build, env=variables
    )
    row: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Prints one row."""
    cases = {case.name: case for case in itertools.chain(CASES, *GROWTH.values())}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=cases, metavar="case", help="a name in benchmarks/cases.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="with precision bf16-mixed")
    parser.add_argument("--small", action="store_true", help="tiny models, to try it out")
    options = parser.parse_args()
    # As the models are used without asking for less: float32 stays float32.
    torch.backends.cudnn.allow_tf32 = False
    tune_process()
    device = torch.device(options.device)
    row = measure(cases[options.case], device, half=options.half, small=options.small)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
