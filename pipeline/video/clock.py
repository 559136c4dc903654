"""When each frame of a video is shown, and which frames a wanted rate keeps.

Pure arithmetic on seconds: containers leave times out, step back and forth, start again in the
middle or tick too coarsely, and none of that may change how fast a video seems to move.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")

RESTART_SECONDS = 1.0
"""A step back in time by more than this is a new beginning; less is disorder."""
JUMP_SECONDS = 10.0
"""A step forward by more is a new clock, where a container's clock may start anew: as FFmpeg."""
UNEVEN = 0.05
"""A gap between frames that differs by more, as a share of the usual one, is uneven."""
UNEVEN_SHARE = 0.01
"""A video with a larger share of uneven gaps has a variable rate."""


@dataclass
class Clock:
    """Mends the times of one video's frames, one after another, and counts what it mended."""

    rate: float
    """Nominal frames a second, for frames without a usable time."""
    tick: float
    """Seconds of the container's smallest step."""
    restarts: bool = False
    """Whether this kind of container may go on with another clock, as streams do."""
    mended: Counter[str] = field(default_factory=Counter)
    """How many times were missing, ran backwards, or started again."""
    _last: float | None = None
    _offset: float = 0.0
    _anchor: float = 0.0

    def mend(self, time: float | None) -> float:
        """Returns when the next frame is shown, in seconds: later than the one before."""
        if self._last is None:
            self.mended["missing"] += time is None
            self._last = self._anchor = time or 0.0
            return self._last
        expected = self._last + 1 / self.rate
        if time is None:
            self.mended["missing"] += 1
            self._last = expected
            return expected
        time += self._offset
        back = self._last - time
        if back > RESTART_SECONDS or (self.restarts and -back > JUMP_SECONDS):
            self.mended["started again"] += 1
            self._offset += expected - time
            time = expected
        elif back >= 0:
            self.mended["ran backwards"] += 1
            time = expected
        steadied = self._steadied(time)
        self._last = steadied if steadied > self._last else time
        return self._last

    def _steadied(self, time: float) -> float:
        """Undoes the rounding of a coarse clock: milliseconds make 24 frames a second uneven."""
        step = 1 / self.rate
        if self.tick >= step / 4:
            return time
        even = self._anchor + round((time - self._anchor) / step) * step
        if abs(even - time) <= self.tick:
            return even
        self._anchor = time
        return time


@dataclass
class Pace:
    """How fast frames follow one another."""

    nominal: float
    """Frames a second as the container says."""
    tick: float
    """Seconds of the container's smallest step."""
    gaps: Counter[int] = field(default_factory=Counter)
    """Time from one frame to the next, in units of 0.1 ms."""
    _last: float | None = None

    def see(self, time: float) -> None:
        """Takes note of the next frame's time, in seconds."""
        if self._last is not None:
            self.gaps[round((time - self._last) * 1e4)] += 1
        self._last = time

    def rate(self) -> float:
        """Returns frames a second on average: the nominal rate, if that is as good."""
        seconds = sum(gap * count for gap, count in self.gaps.items()) / 1e4
        if not seconds:
            return self.nominal
        found = self.gaps.total() / seconds
        return self.nominal if abs(found / self.nominal - 1) < UNEVEN_SHARE else found

    def uneven(self) -> str | None:
        """Says how unevenly frames follow one another; None if they do not."""
        usual = 1e4 / self.rate()
        slack = max(UNEVEN * usual, 2e4 * self.tick)
        odd = sum(count for gap, count in self.gaps.items() if abs(gap - usual) > slack)
        longest = max(self.gaps, default=0)
        if odd <= UNEVEN_SHARE * self.gaps.total() and longest < 3 * usual:
            return None
        return (
            f"{min(self.gaps) / 10:.0f} to {longest / 10:.0f} ms from frame to frame, "
            f"{usual / 10:.1f} on average"
        )


def at_rate(
    frames: Iterable[tuple[float, Item]], *, fps: float, rate: float
) -> Iterator[tuple[float, Item]]:
    """Keeps the frames that are nearest to a grid of `fps` times a second, and the times of that.

    `frames` are (seconds, frame) in order, of nominally `rate` frames a second: never more are
    kept. A frame is repeated where a gap leaves nothing else to show, so that motion keeps its
    speed. The count is that of FFmpeg's filter `fps`, or one more where a last frame is at hand
    for a time that its own end would round away.
    """
    every = 1 / min(fps, rate)
    slack = every * 1e-6
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    start, shown = first
    last, due = start, 0
    for time, frame in frames:
        while start + due * every <= (last + time) / 2 + slack:
            yield start + due * every, shown
            due += 1
        last, shown = time, frame
    total = math.floor((last + 1 / rate - start) / every + 0.5 + slack)  # Half is rounded up.
    for number in range(due, total):
        yield start + number * every, shown
