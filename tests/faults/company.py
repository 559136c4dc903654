"""Other writers, places that cannot be written, clocks that jump, links that lead elsewhere."""

import os
import time
from pathlib import Path

from tests.faults.arms import Interruption, JumpingClock, Unprivileged
from tests.faults.kills import keep_finished, must_be_undisturbed
from tests.faults.trial import DataLostError, Trial, UnclearError, kind
from tests.faults.world import OUT
from tests.helpers.small import content

BUSY = "is being written by another process"


@kind("two writers at once")
def two_writers(trial: Trial) -> None:
    """Starts a stage twice, with a random time between: one waits for nobody and nothing mixes."""
    stage = trial.draw.choice(list(OUT))
    out = trial.folder / OUT[stage]
    words = trial.world.words(stage, out=out)
    first = trial.start(*words)
    time.sleep(trial.draw.uniform(0, 0.8) * trial.world.seconds[stage])
    second = trial.start(*words, *trial.draw.choice([(), ("--overwrite",)]))
    trial.faults += 1
    refused = [trial.refusal(running.end(), BUSY) for running in (first, second)]
    if all(refused):
        raise UnclearError(f"{stage}: both writers were refused")
    must_be_undisturbed(trial, stage, out)


@kind("a place that cannot be written")
def read_only(trial: Trial) -> None:
    """Reads and writes a finished artefact whose modes forbid to write."""
    stage = trial.draw.choice(list(OUT))
    out = trial.copy(OUT[stage], linked=False)
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = content(out)
    trial.faults += 1
    words = trial.world.words(stage, out=out)
    trial.refusal(trial.run(*words, arms=[Unprivileged()]), "Permission denied")
    if stage in READERS:
        reader, flag = READERS[stage]
        made = trial.folder / "made" / OUT[reader]
        words = trial.with_input(reader, flag, out, out=made)
        trial.run(*words, arms=[Unprivileged()]).must_succeed()
        must_be_undisturbed(trial, reader, made)
    if content(out) != before:
        raise DataLostError(f"{stage} changed what it may not write")


READERS = {
    "extract": ("tokenize", "--frames"),
    "tokenize": ("train", "--tokens"),
    "train": ("sample", "--run"),
    "sample": ("decode", "--tokens"),
}
"""Stage -> the one that reads what it makes, and how that is called there."""


@kind("clocks that jump")
def clocks(trial: Trial) -> None:
    """Kills a stage, gives its files any time, and lets it go on with a clock that jumps."""
    stage = trial.draw.choice(list(OUT))
    out = trial.folder / OUT[stage]
    words = trial.world.words(stage, out=out)
    at = trial.draw.randint(1, trial.world.changes[stage])
    clock = JumpingClock(trial.draw.randrange(1 << 30))
    trial.run(*words, arms=[clock, Interruption(out, at)]).must_be_clear()
    for path in (path for path in out.rglob("*") if path.is_file()):
        moment = trial.draw.uniform(0, 4e9)
        os.utime(path, (moment, moment))
    done = keep_finished(stage, out, set())
    trial.run(*words, arms=[clock]).must_succeed()
    trial.faults += 2
    keep_finished(stage, out, done)
    must_be_undisturbed(trial, stage, out)


@kind("a link that leads outside")
def link(trial: Trial) -> None:
    """Puts a link in the place of a file or folder; what it leads to is never written to."""
    stage = trial.draw.choice(list(OUT))
    out = trial.copy(OUT[stage])
    paths = sorted(path for path in out.rglob("*") if path.name != ".lock")
    path: Path = trial.draw.choice(paths)
    outside = trial.folder / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = content(outside) if outside.is_dir() else outside.read_bytes()
    trial.faults += 1
    words = trial.world.words(stage, out=out)
    if trial.refusal(trial.run(*words), path, out):
        path.unlink()  # As one would who has read the line.
        trial.refusal(trial.run(*words), path, out)
    if stage in READERS:
        reader, flag = READERS[stage]
        made = trial.folder / "made" / OUT[reader]
        if not trial.refusal(trial.run(*trial.with_input(reader, flag, out, out=made)), path, out):
            must_be_undisturbed(trial, reader, made)
    after = content(outside) if outside.is_dir() else outside.read_bytes()
    if after != before:
        raise DataLostError(f"{path} was a link, and what it led to was changed")
