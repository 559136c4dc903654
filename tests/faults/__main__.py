"""Injects faults for so many minutes: `python -m tests.faults --minutes 10`.

Every trial has a kind and a number, which together with the seed make it again:
`python -m tests.faults --only "kill -9: train" --number 17`. Only kills at a moment in time, half
of them, do not fall on the very same instruction.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # Before torch: sums depend on it in their last bits.
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # Who is killed leaves semaphores to it.

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from pipeline.storage.files import write_json
from tests.faults.harness import KINDS, Tally, attempt, instructions, put_into, report, table
from tests.faults.world import World


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="When to stop.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all draws.")
@click.option("--only", type=click.Choice(list(KINDS)), multiple=True, help="Kinds to try.")
@click.option("--number", type=int, help="The one trial of each kind to make again.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("faults.json"))
@click.option("--readme", type=click.Path(path_type=Path), help="Page to put the table into.")
def main(
    minutes: float,
    seed: int,
    only: tuple[str, ...],
    number: int | None,
    out: Path,
    readme: Path | None,
) -> None:
    """Injects faults of every kind in turn; exit code 1 if a promise was not kept."""
    kinds = only or tuple(KINDS)
    numbers: Iterator[int] = itertools.count() if number is None else iter([number])
    trials = ((kind, number) for number in numbers for kind in kinds)
    tallies = {kind: Tally() for kind in kinds}
    taking = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        world = World(Path(folder).resolve() / "world")
        ends = time.monotonic() + 60 * minutes

        def work() -> None:
            while time.monotonic() < ends:
                with taking:
                    kind, number = next(trials, (None, 0))
                if kind is None:
                    return
                attempt(world, kind, number, seed, tallies[kind])
                for failure in tallies[kind].failures:
                    if failure["number"] == number:
                        print(*failure.values(), sep=" | ", file=sys.stderr, flush=True)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for worker in [pool.submit(work) for _ in range(os.cpu_count() or 1)]:
                worker.result()
        world.must_be_untouched()
    write_json(out, {"minutes": minutes, **report(tallies, seed=seed)})
    machine = f"{os.cpu_count()} cores {instructions()}".rstrip()
    said = f"{table(tallies)}\n\nSeed {seed}, {minutes:g} minutes on {machine}."
    print(said)
    if readme:
        put_into(readme, said)
    if any(tally.failures for tally in tallies.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
