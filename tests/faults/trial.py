"""Trials of faults: what one is, the processes it runs in, and what may become of it."""

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.store.layout import INFO
from tests.faults.arms import Arm, Armed
from tests.faults.readers import different
from tests.faults.world import World
from tests.helpers.small import fork, has_ended

PATIENCE = 300.0
"""Seconds after which a command is taken to hang."""


class BrokenPromiseError(Exception):
    """A promise that was not kept; each child is a column of the table."""


class DataLostError(BrokenPromiseError):
    """What was finished before is gone, or can no longer be used."""


class WrongDataError(BrokenPromiseError):
    """Something else was read, or made, than what had been written."""


class UnclearError(BrokenPromiseError):
    """A traceback, a hang, or a refusal that does not name what is wrong in one line."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    words: str
    code: int
    said: str

    @property
    def killed(self) -> bool:
        """Whether kill -9 ended it."""
        return self.code == -signal.SIGKILL

    def must_succeed(self) -> "Ended":
        """Raises DataLostError, or UnclearError after a traceback, if the command failed."""
        self.must_be_clear()
        if self.code:
            raise DataLostError(f"{self.words}: exit code {self.code}: {self.said[-500:]}")
        return self

    def must_be_clear(self, *names: Path | str) -> "Ended":
        """Raises UnclearError if the command failed without one line that holds one of `names`."""
        if self.code == 0 or self.killed:
            return self
        lines = [line for line in self.said.splitlines() if line.startswith("Error: ")]
        if self.code not in (1, 2) or len(lines) != 1 or "Traceback" in self.said:
            raise UnclearError(f"{self.words}: exit code {self.code}: {self.said[-1500:]}")
        if names and not any(re.search(rf"{re.escape(str(name))}\b", lines[0]) for name in names):
            raise UnclearError(
                f"{self.words}: {lines[0]} (names none of {', '.join(map(str, names))})"
            )
        return self


@dataclass
class Running:
    """A command at work."""

    words: str
    process: BaseProcess
    said: Path

    def end(self, *, kill_after: float | None = None) -> Ended:
        """Waits for it, or kills it after so many seconds."""
        ended = has_ended(self.process, PATIENCE if kill_after is None else kill_after)
        self.process.kill()
        has_ended(self.process)
        if not ended and kill_after is None:
            raise UnclearError(f"{self.words}: no end after {PATIENCE:.0f} seconds")
        code = self.process.exitcode
        assert code is not None
        said = self.said.read_text(errors="replace") if self.said.exists() else ""
        return Ended(self.words, code, said)


@dataclass
class Trial:
    """One trial: an empty folder, the undisturbed artefacts to copy, and seeded draws."""

    world: World
    folder: Path
    draw: random.Random
    faults: int = 0
    """Faults injected so far."""
    refused: int = 0
    """Refusals by name so far."""
    swapped: Path | None = None
    """The other of two files that were swapped."""
    _commands: int = field(default=0)

    def start(self, *words: Path | str, arms: Sequence[Arm] = ()) -> Running:
        """Starts `mebt WORDS`."""
        self._commands += 1
        said = self.folder / f"said-{self._commands}.txt"
        arguments = [str(word) for word in words]
        process = fork(arguments, run=Armed(said, tuple(arms)))
        return Running("mebt " + " ".join(arguments), process, said)

    def run(
        self, *words: Path | str, arms: Sequence[Arm] = (), kill_after: float | None = None
    ) -> Ended:
        """Runs `mebt WORDS` to its end, on stores that zarr reads as we do."""
        self.must_read_alike()
        return self.start(*words, arms=arms).end(kill_after=kill_after)

    def must_read_alike(self) -> None:
        """Raises WrongDataError if zarr reads any of the trial's token stores otherwise than we."""
        for record in self.folder.rglob(INFO):
            for line in different(record.parent):
                raise WrongDataError(line)

    def refusal(self, ended: Ended, *names: Path | str) -> bool:
        """Counts a refusal, if it is one, that names in one line what is wrong; or says False."""
        others = (self.swapped,) if names and self.swapped else ()
        refused = ended.must_be_clear(*names, *others).code in (1, 2)
        self.refused += refused
        return refused

    def with_input(self, stage: str, flag: str, path: Path, *, out: Path) -> list[str]:
        """Returns a stage's command with another input than the undisturbed one."""
        words = self.world.words(stage, out=out)
        words[words.index(flag) + 1] = str(path)
        return words

    def copy(self, name: str, *, linked: bool = True) -> Path:
        """Copies an artefact of the undisturbed flow into the trial's folder.

        Files are `linked` unless a trial changes them in place: commands only ever replace files.
        But a lock that is linked would be that of other trials, too.
        """
        source, target = self.world.root / name, self.folder / name
        copy = os.link if linked else shutil.copy2
        if source.is_dir():
            no_lock = shutil.ignore_patterns(".lock")
            shutil.copytree(source, target, copy_function=copy, ignore=no_lock)
        else:
            copy(source, target)
        return target


Run = Callable[[Trial], None]
KINDS: dict[str, Run] = {}
"""Every kind of fault: what one trial of it does."""


def kind(name: str) -> Callable[[Run], Run]:
    """Registers a kind of fault."""

    def register(run: Run) -> Run:
        assert name not in KINDS
        KINDS[name] = run
        return run

    return register
