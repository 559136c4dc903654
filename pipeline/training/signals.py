"""Signals that stop a run, and what they do before its first step."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import StoppedError

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
"""Windows has no SIGUSR1."""


def _leave(number: int, _: FrameType | None) -> None:
    print("Error: stopped by a signal before a step; run it again to go on.", file=sys.stderr)
    # Not as an Exception: what is being imported may catch any.
    raise SystemExit(StoppedError.exit_code)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Makes a stop signal end the process with "run me again", where nothing has to be saved."""
    old = {number: signal.signal(number, _leave) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests() -> Iterator[Sequence[int]]:
    """Collects stop signals; the loop looks at them between two steps."""
    seen: list[int] = []
    old = {
        name: signal.signal(name, lambda number, _: seen.append(number)) for name in STOP_SIGNALS
    }
    try:
        yield seen
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
