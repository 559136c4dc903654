"""Measures every case in a process of its own, beside the machine's limit: `make bench`.

A factor is the time taken over the time at the limit: that of the published model's own
multiply-adds at the rate of this machine's fastest matrix product in that precision, that of the
bytes moved at the rate of its copies, or that of the model alone. Below 1 means that some of the
work was not needed.

The rate is the best of a few products, as short work gets it now and then where others share the
processor. `steady` puts the time beside the mean of those products instead.

With --against DIR, another checkout of this repository, both run each case in turn, and a row says
how many times as fast this one is.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import CASES
from benchmarks.machine import SIDE
from benchmarks.measure import ROOT, in_own_process
from benchmarks.work import Case

RESULTS = Path(__file__).parent / "results.json"
Row = dict[str, Any]
HEADER = (
    f"{'':46} {'seconds':>8} {'limit':>8} {'factor':>7} {'target':>7} {'steady':>7} "
    f"{'extra GB':>8} {'target':>7} {'GFLOP/s':>8} {'GB/s':>6}"
)
COMPARED = (
    f"{'':46} {'there s':>8} {'here s':>8} {'ratio':>6} {'':11} {'GB there':>8} {'GB here':>8}"
)


def show(row: Row) -> str:
    """Writes a row of the table; a target that is not reached is marked."""

    def beside(value: float, target: float | None, form: str) -> str:
        missed = target is not None and value > target
        return f"{value:{form}}{'!' if missed else ' '}{'' if target is None else target!s:>7}"

    factor = beside(row["factor"], row["target"], "7.3f")
    memory = beside(row["extra_gb"], row["extra_gb_target"], "8.2f")
    times = f"{row['seconds']:8.3f} {row['limit_seconds']:8.3f}"
    machine = f"{row['gflops']:8.0f} {row['gb_per_second']:6.1f}"
    steady = "" if row["steady"] is None else f"{row['steady']:.3f}"
    return f"{row['name']:46} {times} {factor:15} {steady:>7} {memory:16} {machine}"


def compare(case: Case, run: Callable[..., Row], *, against: Path, rounds: int, half: bool) -> Row:
    """Runs a case here and in another checkout in turn; returns ratios of their seconds."""
    found: dict[str, list[Row]] = {"here": [], "there": []}
    for _ in range(rounds):
        found["there"].append(run(case, half=False, build=against))
        found["here"].append(run(case, half=half, build=ROOT))
    pairs = list(zip(found["there"], found["here"], strict=True))
    ratios = sorted(there["seconds"] / here["seconds"] for there, here in pairs)
    return {
        **found["here"][-1],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "seconds_there": [row["seconds"] for row in found["there"]],
        "seconds_here": [row["seconds"] for row in found["here"]],
        "extra_gb_there": max(row["extra_gb"] for row in found["there"]),
        "extra_gb": max(row["extra_gb"] for row in found["here"]),
    }


def show_ratio(row: Row) -> str:
    """Writes how many times as fast this build is, between which ratios, and the memory of both."""
    there, here = median(row["seconds_there"]), median(row["seconds_here"])
    ratios = row["ratios"]
    return (
        f"{row['name']:46} {there:8.3f} {here:8.3f} {median(ratios):6.2f} "
        f"({ratios[0]:.2f}-{ratios[-1]:.2f}) {row['extra_gb_there']:8.2f} {row['extra_gb']:8.2f}"
    )


def main() -> None:
    """Prints the table and writes it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="cases whose name has one of these in it: a|b")
    parser.add_argument("--half", action="store_true", help="with precision bf16-mixed")
    parser.add_argument("--threads", type=int, help="cores to use; else all")
    parser.add_argument("--against", type=Path, help="another checkout, which stays in float32")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both, with --against")
    parser.add_argument("--small", action="store_true", help="tiny models, to try it out")
    parser.add_argument("--out", type=Path, help=f"where the rows go, as JSON; else {RESULTS.name}")
    options = parser.parse_args()
    run = partial(
        in_own_process, device=options.device, small=options.small, threads=options.threads
    )
    rows: list[Row] = []
    print(COMPARED if options.against else HEADER)
    for case in CASES:
        if not any(words in case.name for words in options.only.split("|")):
            continue
        if options.against:
            how = {"against": options.against, "rounds": options.rounds, "half": options.half}
            rows.append(compare(case, run, **how))
            print(show_ratio(rows[-1]), flush=True)
        else:
            rows.append(run(case, half=options.half))
            print(show(rows[-1]), flush=True)
    if rows:
        kernels = ", ".join(f"{name} {rate:.0f}" for name, rate in rows[-1]["kernels"].items())
        marks = "" if options.against else "; ! marks a target that was not reached"
        print(f"on {rows[-1]['machine']}, load {rows[-1]['load']}, {rows[-1]['precision']}{marks}")
        print(f"GFLOP/s of products of {SIDE} x {SIDE} in the last row: {kernels}")
    out = options.out or (None if options.against else RESULTS)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
