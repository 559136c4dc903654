"""What is known of clips beside their frames: texts of each video, numbers of each frame."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import FrameError
from pipeline.storage.files import remove, replacing, write_bytes
from pipeline.storage.sealed import to_parquet
from pipeline.video.clips import Source

VIDEOS, STATES = "videos.parquet", "states.parquet"
VIDEOS_SCHEMA = pa.schema([(name, pa.string()) for name in ("video", "source", "caption", "label")])
"""Of each clip, named as its folder, where it comes from and what was said of it there."""
Record = dict[str, Any]


def write_beside(out: Path, sources: Sequence[Source], records: Sequence[Record]) -> None:
    """Writes both tables, as far as there is anything to say.

    Rows of `states.parquet` are video, frame (the number in its name), time in seconds of the whole
    video, and a list of numbers under each name. Raises FrameError if some videos have more of a
    name than others.
    """
    pairs = list(zip(sources, records, strict=True))
    for name, there in (
        (VIDEOS, any(source.about for source in sources)),
        (STATES, any(source.states for source, record in pairs if record["kept"])),
    ):
        if not there:
            remove(out / name)
        elif name == VIDEOS:
            rows = [
                {**source.about, "video": video}
                for source, record in pairs
                for video in sorted({_video(clip) for clip in record["kept"]})
            ]
            table = pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)
            write_bytes(out / VIDEOS, to_parquet(table))
        else:
            tables = _alike(part for source, record in pairs for part in _states(source, record))
            first = next(tables)
            with (
                replacing(out / STATES) as temporary,
                pq.ParquetWriter(temporary, first.schema) as writer,
            ):
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)


def _alike(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the tables. Raises FrameError if lists of a name are longer in one than in another."""
    seen: dict[str, tuple[int, str]] = {}
    for table in tables:
        video = table["video"][0].as_py()
        for name in table.column_names[3:]:
            if (width := pc.max(pc.list_value_length(table[name])).as_py()) is None:
                continue
            first, where = seen.setdefault(name, (width, video))
            if width != first:
                raise FrameError(
                    f"{video} has {width} numbers of {name} a frame, but {where} has {first}; take "
                    "one of them out."
                )
        yield table


def _video(clip: Record) -> str:
    return f"{clip['split']}/{clip['name']}"


def _states(source: Source, record: Record) -> Iterator[pa.Table]:
    """Yields the numbers of each clip that was kept of a video."""
    if source.states is None or not record["kept"]:
        return
    whole = source.states()
    for clip in record["kept"]:
        numbers = [int(PurePosixPath(frame).stem.rpartition("_")[2]) for frame in clip["frames"]]
        table = whole.take(np.asarray(numbers, np.int64))
        table = table.add_column(0, "frame", pa.array(numbers, pa.int32()))
        yield table.add_column(0, "video", pa.array([_video(clip)] * len(numbers), pa.string()))
