"""The list of the frames of videos, from their files."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.errors import FrameError
from pipeline.frame_list import SHOWN, SOURCE_SCHEMA, FrameRecord, source_of
from pipeline.frames.films import FilmFrame
from pipeline.frames.given import Frames
from pipeline.frames.images import FrameFile
from pipeline.frames.scan import Video
from pipeline.frames.tars import TarFrame

RAW = (".bmp", ".tif", ".tiff", ".pgm", ".ppm")
"""Images that can keep their size in bytes whatever they show."""


def list_frames(videos: Sequence[Video], root: Frames) -> pa.Table:
    """Lists the frames of videos with their sizes in bytes, and a hash of the bytes of `RAW` ones.

    Of a frame of a film both are the film's, which may be as large whatever it shows.
    Cheap and the same on every machine; a compressed frame repainted to the very same number of
    bytes is not noticed. Raises FrameError, naming the first few, if listed frames are missing.
    """
    rows: list[tuple[str, str, str, int, str | None]] = []
    missing = []
    for video in videos:
        for frame in video.frames:
            try:
                rows.append((video.split, video.name, *_record(frame)))
            except FileNotFoundError:
                missing.append(str(frame))
    if missing:
        more = f" and {len(missing) - SHOWN:,} more" if missing[SHOWN:] else ""
        are = "are" if missing[1:] else "is"
        raise FrameError(f"{', '.join(missing[:SHOWN])}{more} {are} listed in {root} but missing.")
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SOURCE_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SOURCE_SCHEMA)


def _record(frame: FrameFile) -> FrameRecord:
    if isinstance(frame, FilmFrame):
        return frame.path.name, frame.member.size, frame.film.sha256
    if isinstance(frame, TarFrame):
        name, size = frame.path.name, frame.member.size
    else:
        name, size = os.fsencode(Path(frame).name).decode(), Path(frame).stat().st_size
    if Path(name).suffix.lower() not in RAW:
        return name, size, None
    data = frame.member.read() if isinstance(frame, TarFrame) else Path(frame).read_bytes()
    return name, size, hashlib.sha256(data).hexdigest()


def source_fingerprint(videos: Sequence[Video], root: Frames) -> str:
    """Returns the hash of which frames there are; see `list_frames`."""
    return source_of(list_frames(videos, root))
