"""Progress of long work: a bar on a terminal, else a line every 15 seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

PLAIN_SECONDS = 15
"""Seconds between two lines where there is no terminal."""


@contextmanager
def progress(
    what: str, total: int, unit: str, *, done: int = 0, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Yields a function to call with the count of units just finished, and numbers to show.

    `done` units were finished before, and so were those that it is told of as `known`. Nothing is
    printed if `shown` is false, as on other ranks.
    """
    began = last = time.monotonic()
    first = done
    latest: dict[str, float] = {}
    bar = tqdm(desc=what, total=total, initial=done, unit=unit, disable=None if shown else True)

    def advance(count: int, *, known: int = 0, **numbers: float) -> None:
        nonlocal done, first, last
        done, first = done + count + known, first + known
        if not bar.disable:
            bar.initial += known  # What the bar's rate leaves out.
        bar.update(count + known)
        if numbers:
            latest.update(numbers)
            bar.set_postfix({name: f"{value:.4f}" for name, value in numbers.items()})
        now = time.monotonic()
        if bar.disable and shown and (now - last > PLAIN_SECONDS or done == total):
            last = now
            speed = (done - first) / max(now - began, 1e-9)
            text = "".join(f", {name} {value:.4f}" for name, value in latest.items())
            left = (total - done) / max(speed, 1e-9) / 60
            print(
                f"{what}: {done}/{total} {unit}s, {speed:.1f}/s, {left:.1f} min left{text}",
                file=sys.stderr,
                flush=True,
            )

    with bar:
        yield advance
