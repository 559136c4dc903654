"""What a process of a trial is armed with before it runs `mebt`: kills, errors, limits, clocks."""

import ctypes
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.__main__ import cli

Arm = Callable[[], None]
"""Prepares a process, before it runs `mebt`, for what shall happen to it."""


@dataclass(frozen=True)
class Interruption:
    """Stops a process at the n-th change that it makes below a folder, counted from 1."""

    folder: Path
    at: int
    error: int | None = None
    """Error number with which that change fails; None: kill -9."""

    def __call__(self) -> None:
        """Arms it in this process."""

        def interrupt(number: int, path: str) -> None:
            if number != self.at:
                return
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.error, os.strerror(self.error or 0), path)

        watch(self.folder, interrupt)


@dataclass(frozen=True)
class Tally:
    """Counts the changes that a process makes below a folder, in a file."""

    folder: Path
    file: Path

    def __call__(self) -> None:
        """Arms it in this process."""
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT)
        watch(self.folder, lambda number, _: os.pwrite(descriptor, str(number).encode(), 0))


def watch(folder: Path, act: Callable[[int, str], object]) -> None:
    """Calls `act(number, path)` before each change below a folder: what Python audits, and fsync.

    Libraries that write without Python are not seen at it, but before and after.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = _changed(event, arguments)
        if path is not None and Path(path).is_relative_to(folder):
            count += 1
            act(count, path)

    fsync = os.fsync

    def audited(descriptor: int) -> None:
        sys.audit("fsync", f"/proc/self/fd/{descriptor}")
        fsync(descriptor)

    os.fsync = audited  # type: ignore[assignment]
    sys.addaudithook(hook)


FOLDER_DESCRIPTOR = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2}
"""Where an event's arguments say which open folder its path is relative to; -1: none."""


def _changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Returns the path that an audit event is about to change; None if it changes nothing."""
    if event == "fsync":
        return str(Path(arguments[0]).readlink())
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return os.fsdecode(path) if writes and not isinstance(path, int) else None
    if event not in FOLDER_DESCRIPTOR:
        return None
    name, descriptor = os.fsdecode(arguments[0]), arguments[FOLDER_DESCRIPTOR[event]]
    folder = "" if descriptor == -1 else Path(f"/proc/self/fd/{descriptor}").readlink()
    path = Path(folder, name)
    in_vain = path.is_dir() if event == "os.mkdir" else not os.path.lexists(path)
    return None if in_vain else str(path)


@dataclass(frozen=True)
class MemoryLimit:
    """Lets a process have so many bytes more than it has when this is armed."""

    extra: int

    def __call__(self) -> None:
        """Arms it in this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + self.extra
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@dataclass(frozen=True)
class FileSizeLimit:
    """Lets a process write so many bytes to any one file."""

    most: int

    def __call__(self) -> None:
        """Arms it in this process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))


@dataclass(frozen=True)
class JumpingClock:
    """Makes the time of day jump back and forth by up to ten years at each look."""

    seed: int

    def __call__(self) -> None:
        """Arms it in this process."""
        draw, now = random.Random(self.seed), time.time
        time.time = lambda: now() + draw.uniform(-3e8, 3e8)


class Unprivileged:
    """Takes root's right to write what its mode forbids; other users never had it."""

    def __call__(self) -> None:
        """Arms it in this process."""
        version, this_process, no_capabilities = 0x20080522, 0, (ctypes.c_uint32 * 6)()
        header = (ctypes.c_uint32 * 2)(version, this_process)
        if ctypes.CDLL(None, use_errno=True).capset(header, no_capabilities):
            raise OSError(ctypes.get_errno(), "capset")


@dataclass(frozen=True)
class Armed:
    """Runs `mebt`, in a process of its own, armed and with all that it says in a file."""

    said: Path
    arms: tuple[Arm, ...]

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Runs `mebt ARGUMENTS`."""
        descriptor = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        for arm in self.arms:
            arm()
        cli(arguments)
