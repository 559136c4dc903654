"""Where the files of a LeRobot data set lie: names with fields, as its `meta/info.json` says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from string import Formatter

from pipeline.errors import FrameError
from pipeline.frames.scan import MAX_NAME
from pipeline.storage.files import printable

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FIELDS = {"video_key": "", "chunk_index": r"0?\d?d?", "file_index": r"0?\d?d?"}
"""What names may hold, and in which way each may be written out."""


@dataclass(frozen=True)
class Template:
    """Names of files below a folder. Raises FrameError for fields that are not known."""

    where: str
    """Who says it, for messages."""
    text: str

    def __post_init__(self) -> None:
        try:
            fields = [field[1:] for field in Formatter().parse(self.text)]
        except ValueError as error:
            raise self._refused(f"is no name with fields: {error}") from None
        for name, spec, conversion in fields:
            if name is None:
                continue
            if name not in FIELDS:
                raise self._refused(f"has a field {name!r}; known are {', '.join(FIELDS)}")
            if conversion or not re.fullmatch(FIELDS[name], spec or "", re.ASCII):
                raise self._refused(f"writes {name} otherwise than as {{{name}}} or {{{name}:03d}}")

    def path(self, folder: Path, camera: str, place: Mapping[str, int]) -> Path:
        """Returns where a file lies. Raises FrameError unless a file of `folder` may be there."""
        name = self.text.format(video_key=camera, **place)
        inside = PurePath(name)
        if inside.anchor or ".." in inside.parts or "\\" in name:
            raise self._refused("leads out of the data set; refused")
        if not name.isprintable() or any(len(part.encode()) > MAX_NAME for part in inside.parts):
            raise self._refused("is no name that a file can have")
        return folder / inside

    def _refused(self, what: str) -> FrameError:
        return FrameError(f"{self.where} {printable(self.text[:100])!r} {what}.")
