"""kill -9 at any moment: what was finished stays, and the end is the same byte for byte."""

import functools
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.faults.arms import Interruption
from tests.faults.trial import (
    PATIENCE,
    DataLostError,
    Ended,
    Trial,
    UnclearError,
    WrongDataError,
    kind,
)
from tests.faults.world import OUT, finished, result
from tests.helpers.small import fork, has_ended


def keep_finished(stage: str, out: Path, before: set[str]) -> set[str]:
    """Returns what is finished. Raises DataLostError if something that was is not any more."""
    now = finished(stage, out)
    if gone := before - now:
        raise DataLostError(f"{stage}: {min(gone)} was finished, and is gone")
    return now


def finish(trial: Trial, stage: str, out: Path, *more: str) -> Ended:
    """Runs the stage to its end. Raises WrongDataError if that is not what it makes undisturbed."""
    ended = trial.run(*trial.world.words(stage, *more, out=out)).must_succeed()
    must_be_undisturbed(trial, stage, out)
    return ended


def must_be_undisturbed(trial: Trial, stage: str, out: Path) -> None:
    """Raises WrongDataError, naming where, if an artefact is not that of the undisturbed stage.

    And DataLostError if a file is not there by which its result is known.
    """
    wanted = trial.world.results[stage]
    try:
        found = result(stage, out)
    except FileNotFoundError as error:
        raise DataLostError(f"{stage} ended without {error.filename}") from error
    different = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
    if different:
        raise WrongDataError(f"{stage} ended with another {min(different)}")


def kill(trial: Trial, stage: str) -> None:
    """Kills a stage up to three times, each at a moment or at a change drawn at random."""
    out = trial.folder / OUT[stage]
    words = trial.world.words(stage, out=out)
    done: set[str] = set()
    for _ in range(trial.draw.randint(1, 3)):
        if trial.draw.random() < 0.5:
            at = trial.draw.randint(1, trial.world.changes[stage])
            ended = trial.run(*words, arms=[Interruption(out, at)])
        else:
            moment = trial.draw.uniform(0, 1.1) * trial.world.seconds[stage]
            ended = trial.run(*words, kill_after=moment)
        trial.faults += ended.killed
        ended.must_be_clear()
        done = keep_finished(stage, out, done)
    finish(trial, stage, out)


for stage in OUT:
    kind(f"kill -9: {stage}")(functools.partial(kill, stage=stage))


@dataclass(frozen=True)
class Phases:
    """Tokenizes on several processes again and again, as `tests.helpers.ranks` does."""

    folder: Path
    phases: tuple[str, ...]
    said: Path

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Writes the exit codes of each phase's processes to `codes.json`."""
        from tests.helpers.ranks import run_phase

        descriptor = os.open(self.said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        codes = [run_phase(self.folder, phase, arguments) for phase in self.phases]
        (self.folder.parent / "codes.json").write_text(json.dumps(codes))


@kind("kill -9: tokenize on 1 to 3 processes")
def kill_processes(trial: Trial) -> None:
    """Kills one or all of the processes, at numbers of finished shards drawn at random."""
    out, said = trial.folder / "tokens", trial.folder / "said.txt"
    shards = len(finished("tokenize", trial.world.root / "tokens"))
    phases = []
    for moment in sorted(trial.draw.sample(range(1, shards), trial.draw.randint(1, 3))):
        size = trial.draw.randint(1, 3)
        only = trial.draw.choice(["", f"!{trial.draw.randrange(size)}"])
        phases.append(f"{size}@{moment}{only}")
    phases.append(str(trial.draw.randint(1, 3)))
    words = trial.world.words("tokenize", "--set", "tokenize.batch_size=2", out=out)
    process = fork(words, run=Phases(out, tuple(phases), said))
    if not has_ended(process, PATIENCE):
        process.kill()
        raise UnclearError(f"tokenize, {phases}: no end")
    *killed, last = json.loads((trial.folder / "codes.json").read_text())
    trial.faults += sum(code == -signal.SIGKILL for codes in killed for code in codes)
    if last != [0] * len(last) or "Traceback" in said.read_text():
        raise UnclearError(f"tokenize, {phases}: {killed}, {last}: {said.read_text()[-1500:]}")
    must_be_undisturbed(trial, "tokenize", out)


@kind("kill -9: tokenize --update")
def kill_update(trial: Trial) -> None:
    """Kills the update of a store to other videos; what is read is the old store or none."""
    frames, out, fresh = (trial.folder / name for name in ("frames", "tokens", "fresh"))
    trial.copy("frames")
    for path in frames.glob("*.txt"):
        path.unlink()
    clips = sorted(path for path in (frames / "train").iterdir() if path.is_dir())
    one, other = trial.draw.sample(clips, 2)
    if trial.draw.random() < 0.7:
        shutil.copytree(one, one.with_name("added"))
        shutil.rmtree(other)
    else:  # The same windows, one frame changed.
        picture = trial.draw.choice(sorted(one.iterdir()))
        data = picture.read_bytes()
        picture.unlink()
        picture.write_bytes(data + b" ")
    trial.run(*trial.with_input("tokenize", "--frames", frames, out=fresh)).must_succeed()
    trial.copy("tokens")
    words = [*trial.with_input("tokenize", "--frames", frames, out=out), "--update"]
    for _ in range(trial.draw.randint(1, 3)):
        at = trial.draw.randint(1, 2 * trial.world.changes["tokenize"])
        ended = trial.run(*words, arms=[Interruption(out, at)])
        trial.faults += ended.killed
        ended.must_be_clear()
        trial.refusal(trial.run("tokens", "verify", out), out)
    trial.run(*words).must_succeed()
    if result("tokenize", out) != result("tokenize", fresh):
        raise WrongDataError("an update ended with another store than tokenizing anew")
