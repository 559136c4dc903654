"""Files of what is known of videos: a label or caption of each, numbers of each of their frames.

Each is a CSV or Parquet. Texts are in columns `video` and `label`, or `caption`. Numbers are in
columns `video`, `frame` and one for each name: of numbers, or, in Parquet, of lists. Columns
NAME.0, NAME.1 … are one name; a column `time` is none.
"""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.storage.files import printable
from pipeline.storage.places import Place

VIDEO, FRAME, LABEL, CAPTION, TIME = "video", "frame", "label", "caption", "time"
MAX_LABEL = 200
"""Letters of a label."""
MAX_TEXT = 10_000
"""Characters of a caption that are kept."""
SHOWN = 5
"""Texts that are not taken as they are, each of which has a line."""
MAX_BYTES, AT_ONCE = 1 << 32, 1 << 16
"""Of a file, and of a table in memory; rows that are looked at together."""
NO_FRAME = -(1 << 62)
PARQUET = b"PAR1"
"""How such a file begins."""
PART = re.compile(r"(.+)\.(\d{1,6})", re.ASCII)


def is_label(text: str) -> bool:
    """Says whether a text can be a label: it can be printed, in one line."""
    return 0 < len(text) <= MAX_LABEL and text.isprintable() and text == text.strip()


@dataclass
class VideoTexts:
    """Labels or captions, as `name` says, by the videos that they are of."""

    name: str
    texts: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """Of what is there and is no such text, or is cut off, a line each."""

    def taken(self, text: str, source: str) -> str:
        """Returns what is taken of a text; empty: it is no label. `source` names it in `wrong`."""
        if self.name == LABEL and text and not is_label(text):
            self.wrong.append(f"{source} has no label in {text[:50]!r}")
            return ""
        if len(text) > MAX_TEXT:
            why = f"its caption of {len(text):,} characters is cut off after {MAX_TEXT:,}"
            self.wrong.append(f"{source}: {why}")
        return text[:MAX_TEXT]

    def said(self) -> Sequence[str]:
        """Says what is not taken as it is: of the first few what, of all how many."""
        more = len(self.wrong) - SHOWN
        what = f"{more:,} more are no {self.name}s" + ", or cut off" * (self.name == CAPTION)
        return [*self.wrong[:SHOWN], *([what] if more > 0 else [])]


@dataclass(frozen=True)
class FrameNumbers:
    """What is known of frames of one video."""

    frames: NDArray[np.int64]
    """Numbers of the frames, rising [n]."""
    values: Mapping[str, NDArray[np.float32]]
    """By name [n, width]; NaN: not known."""

    def find(self, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Returns the row of each of these frames, and whether there is one."""
        rows = np.searchsorted(self.frames, frames).clip(max=len(self.frames) - 1)
        return rows, self.frames[rows] == frames

    def missing(self) -> NDArray[np.float64]:
        """Returns which share of the numbers of each frame is not known [n]."""
        numbers = np.concatenate(list(self.values.values()), axis=1)
        return np.asarray(np.isnan(numbers).mean(axis=1), np.float64)


@dataclass(frozen=True)
class StatesFile:
    """Numbers of the frames of videos."""

    place: Place
    widths: Mapping[str, int]
    """Numbers of a frame, by name."""
    videos: Mapping[str, FrameNumbers]

    @property
    def said(self) -> str:
        """What it holds, in words."""
        return ", ".join(f"{name} ({width})" for name, width in self.widths.items())


def file_bytes(path: Path) -> bytes:
    """Returns what a file holds. Raises PipelineError if it is none, or too large."""
    if not path.is_file():
        raise PipelineError(f"{path} is no file of labels, captions or states.")
    if path.stat().st_size > MAX_BYTES:
        raise PipelineError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}.")
    return path.read_bytes()


def read_video_texts(place: Place, data: bytes, name: str) -> VideoTexts:
    """Returns the label or caption of each video of a file; where it is empty, none is known.

    Raises PipelineError, naming the place, for what is no label, and for two texts of one video.
    """
    table = _read_table(place, data, (VIDEO, name))
    known = VideoTexts(name)
    pairs = (_texts(place, table, column) for column in (VIDEO, name))
    for video, text in zip(*pairs, strict=True):
        if name == CAPTION:
            text = known.taken((text or "").strip(), f"{place}: {named(video)}")
        if not text:
            continue
        if name == LABEL and not is_label(text):
            shown = f"{printable(text[:MAX_LABEL])!r} of {named(video)}"
            raise PipelineError(f"{place}: {shown} is no label: give up to {MAX_LABEL} letters.")
        if known.texts.setdefault(video or "", text) != text:
            raise PipelineError(f"{place} says two {name}s of {named(video)}; give one row.")
    if not known.texts:
        raise PipelineError(f"{place} holds no {name}.")
    return known


def named(video: str | None) -> str:
    """Returns the name of a video as it may stand in a message."""
    return printable((video or "")[:MAX_LABEL]) or "a video without a name"


def read_states(place: Place, data: bytes, *, nameless: bool = False) -> StatesFile:
    """Returns the numbers of frames in a file; with `nameless` it may be of one video, unnamed.

    Raises PipelineError, naming place and column, for anything but finite numbers, lists of several
    lengths, and two rows of one frame.
    """
    table = _read_table(place, data, (FRAME,) if nameless else (VIDEO, FRAME))
    if not len(table):
        raise PipelineError(f"{place} holds no rows, so no numbers of frames.")
    if VIDEO not in table.column_names:
        table = table.append_column(VIDEO, pa.array([""] * len(table)))
    table = table.select([i for i, name in enumerate(table.column_names) if name != TIME])
    texts = pa.array(_texts(place, table, VIDEO), pa.string()).fill_null("").dictionary_encode()
    try:
        frames = pc.fill_null(table[FRAME].cast(pa.int64()), NO_FRAME).to_numpy()
    except pa.ArrowException:
        raise PipelineError(f"{place}: column {FRAME} must hold whole numbers.") from None
    values = _values(place, table)
    if not values:
        raise PipelineError(f"{place} holds no numbers of frames beside {VIDEO} and {FRAME}.")
    codes = texts.indices.to_numpy()
    order = np.lexsort((frames, codes))
    codes, frames = codes[order], frames[order]
    twice = np.flatnonzero((codes[1:] == codes[:-1]) & (frames[1:] == frames[:-1]))
    names = texts.dictionary.to_pylist()
    if len(twice):
        video, frame = names[codes[twice[0]]], frames[twice[0]]
        raise PipelineError(f"{place} holds frame {frame} of {named(video)} twice.")
    ends = np.searchsorted(codes, np.arange(len(names) + 1))
    videos = {}
    for name, start, stop in zip(names, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        mine = {key: numbers[order[start:stop]] for key, numbers in values.items()}
        videos[name] = FrameNumbers(frames[start:stop], mine)
    return StatesFile(place, {name: v.shape[1] for name, v in values.items()}, videos)


def _read_table(place: Place, data: bytes, needed: Collection[str]) -> pa.Table:
    try:
        table = _parquet(data) if data.startswith(PARQUET) else _csv(data, needed)
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        problem = printable(str(error).splitlines()[0][:300]) if str(error) else "it is empty"
        raise PipelineError(f"{place} is no CSV or Parquet that can be read: {problem}.") from None
    names = table.column_names
    shown = ", ".join(printable(name[:100]) for name in names[:10])
    for name in needed:
        if name not in names:
            raise PipelineError(f"{place} has no column {name}; it has {shown}.")
    if len(set(names)) < len(names):
        raise PipelineError(f"{place} has two columns of one name; it has {shown}.")
    return table


def _parquet(data: bytes) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(data))
    parts, size = [], 0
    for batch in file.iter_batches(AT_ONCE, use_threads=False):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise ValueError(f"it takes more than {MAX_BYTES:,} bytes of memory")
        batch.validate(full=True)
        parts.append(batch)
    return pa.Table.from_batches(parts, file.schema_arrow)


def _csv(data: bytes, needed: Collection[str]) -> pa.Table:
    if len(data) > MAX_BYTES // 4:
        raise ValueError(f"it has {len(data):,} bytes; give a Parquet")
    kinds = {name: pa.string() for name in (VIDEO, LABEL, CAPTION) if name in needed}
    return pyarrow.csv.read_csv(
        io.BytesIO(data),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
    )


def _texts(place: Place, table: pa.Table, name: str) -> list[str | None]:
    """Returns a column of texts, or of whole numbers as texts; None where it is empty."""
    kind = table[name].type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        raise PipelineError(f"{place}: column {name} must hold text, not {kind}.")
    texts: list[str | None] = table[name].cast(pa.string()).to_pylist()
    return texts


def _values(place: Place, table: pa.Table) -> dict[str, NDArray[np.float32]]:
    """Returns all columns of numbers by name [rows, width]."""
    found: dict[str, NDArray[np.float32]] = {}
    parts: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name in table.column_names:
        if name in (VIDEO, FRAME):
            continue
        numbers = _numbers(f"{place}: column {printable(name[:100])}", table[name])
        if (part := PART.fullmatch(name)) and numbers.shape[1] == 1:
            parts.setdefault(part[1], {})[int(part[2])] = numbers
        else:
            found[name] = numbers
    for name, columns in parts.items():
        if sorted(columns) != list(range(len(columns))) or name in found:
            raise PipelineError(
                f"{place}: columns {printable(name[:100])}.0 and so on must be numbered from 0 "
                "without a gap, and there must be no other of the name."
            )
        found[name] = np.concatenate([columns[place] for place in sorted(columns)], axis=1)
    if LABEL in found:
        raise PipelineError(f"{place}: {LABEL} names the label of a video; name the column else.")
    return {name: found[name] for name in sorted(found)}


def _numbers(what: str, column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Returns a column as [rows, width]; NaN where it is empty."""
    kind, width = column.type, 1
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        widths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
        if len(widths) != 1 or widths[0] < 1:
            raise PipelineError(f"{what} must hold lists of one length, not of {widths[:5]}.")
        width, known = widths[0], np.asarray(pc.is_valid(column))
        flat, kind = pc.list_flatten(column.drop_null()), kind.value_type
    else:
        flat, known = column, np.ones(len(column), bool)
    if pa.types.is_null(kind):
        return np.full((len(column), 1), np.nan, np.float32)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise PipelineError(f"{what} must hold numbers, not {kind}.")
    numbers = np.full((len(column), width), np.nan, np.float32)
    with np.errstate(over="ignore"):
        given = flat.cast(pa.float64(), safe=False).to_numpy().astype(np.float32)
    numbers[known] = given.reshape(-1, width)
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers).any(axis=1))[0])
        raise PipelineError(f"{what} is infinite in row {row + 1}; leave unknown numbers empty.")
    return numbers
