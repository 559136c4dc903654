"""Trials one after the other, and the table of what they found."""

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import company, damage, disks, fuzz, hostile, kills  # noqa: F401  Each of these registers its kinds.
from tests.faults.trial import (
    KINDS,
    BrokenPromiseError,
    DataLostError,
    Trial,
    UnclearError,
    WrongDataError,
)
from tests.faults.world import World


@dataclass
class Tally:
    """What the trials of one kind did."""

    trials: int = 0
    faults: int = 0
    refused: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)

    def count(self, verdict: type[BrokenPromiseError]) -> int:
        """Counts the trials that broke one promise."""
        return sum(failure["verdict"] == verdict.__name__ for failure in self.failures)


def attempt(world: World, name: str, number: int, seed: int, tally: Tally) -> None:
    """Makes one trial and counts what became of it."""
    with tempfile.TemporaryDirectory(dir=world.root.parent) as folder:
        trial = Trial(world, Path(folder).resolve(), random.Random(f"{seed} {name} {number}"))
        try:
            KINDS[name](trial)
            trial.must_read_alike()
        except BrokenPromiseError as broken:
            failure = {"verdict": type(broken).__name__, "kind": name, "number": number}
            tally.failures.append({**failure, "what": str(broken)})
    tally.trials += 1
    tally.faults += trial.faults
    tally.refused += trial.refused


def report(tallies: dict[str, Tally], *, seed: int) -> dict[str, object]:
    """Returns what faults.json holds."""
    every = tallies.values()
    return {
        "seed": seed,
        "trials": sum(tally.trials for tally in every),
        "faults": sum(tally.faults for tally in every),
        "faults_by_kind": {name: tally.faults for name, tally in tallies.items()},
        "trials_by_kind": {name: tally.trials for name, tally in tallies.items()},
        "refused_by_name": sum(tally.refused for tally in every),
        "data_lost": sum(tally.count(DataLostError) for tally in every),
        "wrong_data_read": sum(tally.count(WrongDataError) for tally in every),
        "unclear": sum(tally.count(UnclearError) for tally in every),
        "failures": [failure for tally in every for failure in tally.failures],
    }


def table(tallies: dict[str, Tally]) -> str:
    """Returns the table of docs/reliability.md: one line for each kind, and the sums."""
    rows = [["fault", "trials", "injected", "data lost", "wrong data read", "unclear"]]
    sums = Tally()
    for name, tally in tallies.items():
        rows.append(_row(name, tally))
        sums.trials += tally.trials
        sums.faults += tally.faults
        sums.failures += tally.failures
    rows.append(_row("all", sums))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * 5 + "|", *lines[1:]])


def instructions() -> str:
    """Says whether this machine's processor has AVX-512, where that can be found out."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8").split() if cpu.exists() else []
    if "flags" not in flags:
        return ""
    return f"{'with' if 'avx512bw' in flags else 'without'} AVX-512"


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the two marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- faults -->\n")
    _, end, after = rest.partition("<!-- end of faults -->")
    if not end:
        raise ValueError(f"{page} has no marks for the table of faults.")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def _row(name: str, tally: Tally) -> list[str]:
    broken = [tally.count(verdict) for verdict in (DataLostError, WrongDataError, UnclearError)]
    return [name, *(f"{number:,}" for number in (tally.trials, tally.faults, *broken))]
