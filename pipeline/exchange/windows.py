"""Which windows are cut from ids of others, in the order of the files; and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.exchange.arrays import FileArray
from pipeline.exchange.ids import Codebook, Ids, ImportConfig, Video
from pipeline.store.layout import PLAN_SCHEMA, numbered_plan

IMPORTED = "imported"
"""Begins the name of a window that comes from no known video; its row follows."""
PIECE_BYTES = 1 << 24
"""About so many bytes of a file are read at a time."""


@dataclass(frozen=True)
class Cut:
    """How windows lie in a video, counted in units."""

    units: int
    """Of one window."""
    stride: int
    hop: int

    @property
    def span(self) -> int:
        """Units from a window's first to its last, both included."""
        return (self.units - 1) * self.stride + 1


@dataclass(frozen=True)
class Part:
    """Windows of one video that are of one split."""

    video: Video
    first: int
    """First unit of the first window, in the file."""
    count: int


def cut_of(sources: Sequence[Ids], config: ImportConfig) -> Cut:
    """Returns how windows are cut. Raises PipelineError if values and files do not fit."""
    unit = sources[0].unit
    for ids in sources:
        if ids.are_windows and (config.frames or config.hop or config.stride > 1):
            raise PipelineError(
                f"{ids.place} holds windows, one a row: there is nothing to cut, so give no "
                "--frames, --hop or --stride."
            )
        if ids.unit != unit:
            raise PipelineError(
                f"{ids.place} is in pieces of {ids.unit} latent frames, but {sources[0].place} of "
                f"{unit}."
            )
    frames = config.frames or _window(sources)
    span = (frames - 1) * config.stride + 1
    hop = config.hop or span
    for option, value, fits in (
        ("stride", config.stride, unit == 1 or config.stride == 1),
        ("frames", frames, frames % unit == 0),
        ("hop", hop, hop % unit == 0),
    ):
        if not fits:
            wanted = "1" if option == "stride" else f"a multiple of {unit}"
            raise PipelineError(
                f"{sources[0].place} is in pieces of {unit} latent frames, which stay whole: "
                f"--{option} must be {wanted}, not {value}."
            )
    return Cut(frames // unit, config.stride, hop // unit)


def _window(sources: Sequence[Ids]) -> int:
    """Returns the latent frames of a window that the files say, or all of each video."""
    if all(ids.window for ids in sources):
        lengths = {ids.window or 0 for ids in sources}
    else:
        lengths = {video.length * ids.unit for ids in sources for video in ids.videos}
    if len(lengths) > 1:
        raise PipelineError(
            f"give --frames, the latent frames of a window: {sources[0].place} has videos of "
            f"{min(lengths)} to {max(lengths)}."
        )
    return lengths.pop()


def cut_windows(
    ids: Ids, split: str, cut: Cut, test_share: float
) -> tuple[dict[str, list[Part]], list[str]]:
    """Cuts every video; returns its windows by split, and what is to be said of the rest.

    The last `test_share` of each video's time goes to the test, all else to `split`. Raises
    PipelineError if a split gets no window.
    """
    parts: dict[str, list[Part]] = {name: [] for name in (split, *(["test"] if test_share else []))}
    short: list[str] = []
    rest = 0
    for video in ids.videos:
        first_test = video.length - round(video.length * test_share)
        for name, start, stop in ((split, 0, first_test), ("test", first_test, video.length)):
            count = (stop - start - cut.span) // cut.hop + 1 if stop - start >= cut.span else 0
            if count:
                parts[name].append(Part(video, video.first + start, count))
                rest += max(0, stop - start - (count - 1) * cut.hop - cut.span)
            elif stop > start:
                short.append(f"{video.name} of {(stop - start) * ids.unit}")
    for name, found in parts.items():
        if not found:
            longest = max(video.length for video in ids.videos) * ids.unit
            raise PipelineError(
                f"{ids.place}: no {name} window fits: the longest of {len(ids.videos)} videos has "
                f"{longest} latent frames, a window spans {cut.span * ids.unit}"
                + (f", and the test gets a share of {test_share:g}." if test_share else ".")
            )
    said = []
    if short:
        said.append(
            f"left out pieces shorter than a window of {cut.span * ids.unit} latent frames: "
            f"{len(short):,}, first {short[0]}"
        )
    if rest:
        said.append(f"left out latent frames after the last windows of videos: {rest * ids.unit:,}")
    return parts, said


def plan_of(ids: Ids, split: str, parts: Sequence[Part], cut: Cut, shard_windows: int) -> pa.Table:
    """Lists the windows of one split, in order."""
    counts = np.array([part.count for part in parts])
    total = int(counts.sum())
    if ids.are_windows:
        return numbered_plan({split: total}, IMPORTED, shard_windows)
    which = np.arange(len(parts)).repeat(counts)
    number = np.arange(total) - (counts.cumsum() - counts)[which]
    starts = np.array([part.first - part.video.first for part in parts])[which] + number * cut.hop
    rows = np.arange(total)
    columns = [
        pa.array([split]).take(pa.array(np.zeros(total, np.int64))),
        pa.array((rows // shard_windows).astype(np.int32)),
        pa.array(rows),
        pa.array([part.video.name for part in parts], pa.string()).take(pa.array(which)),
        pa.array((starts * ids.unit).astype(np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=PLAN_SCHEMA)


class WindowFiles:
    """Reads the windows of one split from the files that they are in."""

    def __init__(self, ids: Ids, parts: Sequence[Part], cut: Cut, codebook: Codebook) -> None:
        self.ids, self.parts, self.cut, self.codebook = ids, parts, cut, codebook
        self.ends = np.array([part.count for part in parts]).cumsum()

    def tokens(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Returns the tokens [n, t, h, w] of rows. Raises PipelineError if some are none."""
        shape = (stop - start, self.cut.units * self.ids.unit, *self.ids.size)
        tokens = np.empty(shape, self.codebook.dtype)
        for at, part, first, count in self._pieces(start, stop):
            units, picked = self._span(part, first, count)
            read = self.codebook.tokens(part.video.ids, units.start, units.stop)
            tokens[at : at + count] = read[picked].reshape(count, *shape[1:])
        return tokens

    def states(self, start: int, stop: int) -> dict[str, NDArray[np.float32]]:
        """Returns what else is known of the frames of rows, by name [n, frames, k]."""
        per_unit = self.ids.frames or 0
        found: dict[str, NDArray[np.float32]] = {}
        for at, part, first, count in self._pieces(start, stop):
            units, picked = self._span(part, first, count)
            frames = (picked[..., None] * per_unit + np.arange(per_unit)).reshape(count, -1)
            for name, array in part.video.states:
                read = array.read(units.start * per_unit, units.stop * per_unit)[frames]
                shape = (stop - start, *read.shape[1:])
                found.setdefault(name, np.empty(shape, np.float32))[at : at + count] = read
        return found

    def _span(self, part: Part, first: int, count: int) -> tuple[range, NDArray[np.int64]]:
        """Returns the units to read for windows of a part, and which of them each window is of."""
        cut, begin = self.cut, part.first + first * self.cut.hop
        picked = np.arange(count)[:, None] * cut.hop + np.arange(cut.units)[None, :] * cut.stride
        return range(begin, begin + (count - 1) * cut.hop + cut.span), picked

    def _pieces(self, start: int, stop: int) -> list[tuple[int, Part, int, int]]:
        """Cuts rows where a video ends and where reading more at once would take much memory.

        Each is (place among the rows, part, first window of it, how many).
        """
        pieces = []
        row = start
        while row < stop:
            index = int(np.searchsorted(self.ends, row, side="right"))
            part = self.parts[index]
            first = row - (int(self.ends[index]) - part.count)
            most = max(1, PIECE_BYTES // (self.cut.hop * part.video.ids.row_bytes))
            count = min(part.count - first, stop - row, most)
            pieces.append((row - start, part, first, count))
            row += count
        return pieces


def read_all(array: FileArray) -> list[tuple[int, int]]:
    """Returns the rows (start, stop) in which a whole array is read, a piece at a time."""
    step = max(1, PIECE_BYTES // max(1, array.row_bytes))
    return [(at, min(at + step, array.shape[0])) for at in range(0, array.shape[0], step)]
