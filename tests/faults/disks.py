"""Disks that are full or fail: one clear line, nothing lost, and the same end when they recover."""

import contextlib
import errno
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.faults.arms import FileSizeLimit, Interruption
from tests.faults.kills import finish, keep_finished
from tests.faults.trial import Trial, kind
from tests.faults.world import OUT

MAX_FILE = {"extract": 400, "decode": 3000}
"""Bytes that about the largest file of a stage has; 20,000 for the others."""


def fail(trial: Trial, error: int) -> None:
    """Lets one change of a stage fail, up to three times."""
    stage = trial.draw.choice(list(OUT))
    out = trial.folder / OUT[stage]
    done: set[str] = set()
    for _ in range(trial.draw.randint(1, 3)):
        at = trial.draw.randint(1, trial.world.changes[stage])
        arms = [Interruption(out, at, error)]
        ended = trial.run(*trial.world.words(stage, out=out), arms=arms)
        trial.faults += trial.refusal(ended, os.strerror(error))
        done = keep_finished(stage, out, done)
    finish(trial, stage, out)


kind("ENOSPC when a file is made, written, renamed")(functools.partial(fail, error=errno.ENOSPC))
kind("EIO when a file is made, written, renamed")(functools.partial(fail, error=errno.EIO))


@kind("a file grows beyond the limit of the system")
def too_large(trial: Trial) -> None:
    """Lets no file grow beyond a size, then beyond a larger one."""
    stage = trial.draw.choice(list(OUT))
    out = trial.folder / OUT[stage]
    done: set[str] = set()
    for _ in range(2):
        most = trial.draw.randint(300, MAX_FILE.get(stage, 20_000))
        ended = trial.run(*trial.world.words(stage, out=out), arms=[FileSizeLimit(most)])
        trial.faults += trial.refusal(ended, os.strerror(errno.EFBIG))
        done = keep_finished(stage, out, done)
    finish(trial, stage, out)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mounts a file system of so many bytes."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@functools.cache
def may_mount() -> bool:
    """Says whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), 1 << 16):
                return True
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False


@kind("a small disk becomes full")
def fill(trial: Trial) -> None:
    """Lets a stage write to a small disk until it is full, then makes the disk larger.

    Injects nothing where a user may not mount one.
    """
    if not may_mount():
        return
    stage = trial.draw.choice(list(OUT))
    disk = trial.folder / "disk"
    disk.mkdir()
    out = disk / OUT[stage]
    needed = sum(path.stat().st_blocks for path in (trial.world.root / OUT[stage]).rglob("*"))
    with small_disk(disk, int(trial.draw.uniform(0.1, 0.9) * 512 * needed)):
        done: set[str] = set()
        for _ in range(2):  # Run again, a disk that is still full loses nothing either.
            ended = trial.run(*trial.world.words(stage, out=out))
            trial.faults += trial.refusal(ended, os.strerror(errno.ENOSPC))
            done = keep_finished(stage, out, done)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        finish(trial, stage, out)
