"""Measures every case in a process of its own, beside the machine's limit: `make bench`.

A factor is the time taken over the time at the limit: that of the published model's own
multiply-adds at the rate of this machine's matrix products, that of the bytes moved at the rate of
its copies, or that of the model alone. Below 1 means that some of the work was not needed.

The rate is the best of a few products, as short work gets it now and then where others share the
processor. `steady` puts the time beside the mean of those products instead.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.measure import in_own_process

RESULTS = Path(__file__).parent / "results.json"
Row = dict[str, Any]
HEADER = (
    f"{'':46} {'seconds':>8} {'limit':>8} {'factor':>7} {'target':>7} {'steady':>7} "
    f"{'extra GB':>8} {'target':>7} {'GFLOP/s':>8} {'GB/s':>6}"
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


def main() -> None:
    """Prints the table and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--small", action="store_true", help="tiny models, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows go, as JSON")
    options = parser.parse_args()
    rows: list[Row] = []
    print(HEADER)
    for case in CASES:
        if options.only in case.name:
            rows.append(in_own_process(case, options.device, small=options.small))
            print(show(rows[-1]), flush=True)
    if rows:
        print(f"on {rows[0]['machine']}; ! marks a target that was not reached")
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
