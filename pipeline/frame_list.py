"""Which frames tokens or a tokenizer were made from: the list that is kept, its hash, what differs.

The list is a table, a row for each frame of each video, in the order of the videos.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import fingerprint

FRAMES = "frames.parquet"
"""The list, in the folder of what was made from the frames."""
SHOWN = 3
"""Names that a message gives of each kind of difference."""

SOURCE_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("video", pa.string()),
        ("frame", pa.string()),
        ("bytes", pa.int64()),
        (
            "sha256",
            pa.string(),
        ),  # Of images that are not compressed alone; their size says nothing.
    ]
)

VideoKey = tuple[str, str]
"""Split and name of a video."""
FrameRecord = tuple[str, int, str | None]
"""Name, bytes and perhaps SHA-256 of a frame."""


def by_video(frames: pa.Table) -> Iterator[tuple[VideoKey, list[FrameRecord]]]:
    """Yields each video of a list with its frames, in order."""
    rows = zip(*(frames[name].to_pylist() for name in SOURCE_SCHEMA.names), strict=True)
    for key, group in itertools.groupby(rows, key=lambda row: row[:2]):
        yield key, [row[2:] for row in group]


def source_of(frames: pa.Table) -> str:
    """Returns the hash of a list of frames, by which tokens say what they were made from."""
    return fingerprint(
        [
            [video, split, [[n, size] if sha is None else [n, size, sha] for n, size, sha in found]]
            for (split, video), found in by_video(frames)
        ]
    )


@dataclass(frozen=True)
class Difference:
    """Where two lists of frames differ, by name."""

    frames: list[str]
    """Of videos in both: frames that are others, or in one list alone."""
    new: list[str]
    """Videos."""
    gone: list[str]
    same_names: bool
    """Whether both list the same frames of the same videos: none but their bytes differ."""

    def __str__(self) -> str:
        parts = [
            _some(self.frames, "frame differs", "frames differ"),
            _some(self.new, "video is new", "videos are new"),
            _some(self.gone, "video is gone", "videos are gone"),
        ]
        return "; ".join(filter(None, parts)) or "the order of the videos"


def difference(found: pa.Table, wanted: pa.Table) -> Difference:
    """Compares what was listed before with what is listed now."""
    before, now = dict(by_video(found)), dict(by_video(wanted))
    frames = []
    for key in before.keys() & now.keys():
        if before[key] == now[key]:
            continue
        ours, theirs = ({name: rest for name, *rest in x[key]} for x in (now, before))
        frames += [
            f"{name} of {key[1]}"
            for name in {**theirs, **ours}
            if ours.get(name) != theirs.get(name)
        ]
    new, gone = (
        [f"{name} in {split}" for split, name in sorted(a.keys() - b.keys())]
        for a, b in ((now, before), (before, now))
    )
    names = SOURCE_SCHEMA.names[:3]
    same_names = found.select(names).equals(wanted.select(names))
    return Difference(sorted(frames), new, gone, same_names)


def _some(names: Sequence[str], one: str, many: str) -> str:
    """Counts what differs, and names the first few."""
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(names[:SHOWN])
    return f"{len(names):,} {one if len(names) == 1 else many} ({shown}{more})"
