"""Films in tars of others, for who reads frames. Worker processes import it: no torch."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import FrameError, StorageError
from pipeline.frames.films import Film
from pipeline.frames.given import Frames
from pipeline.frames.images import Frame
from pipeline.frames.scan import FrameFolder, scan_frames
from pipeline.storage.files import make_folder
from pipeline.storage.places import read_parts
from pipeline.storage.tars import Member
from pipeline.video.footage import About
from pipeline.video.packets import count_frames
from pipeline.video.reader import read_video

AT_ONCE = 1 << 22
"""Bytes of a video that are copied in one go."""


@contextmanager
def lent(member: Member, suffix: str, scratch: Path | None = None) -> Iterator[Path]:
    """Copies a video of a tar to a file of its own: FFmpeg reads files.

    It lies in the folder `scratch`, or else where the system keeps what is temporary. Messages of
    FrameError name the tar. Raises StorageError, naming the folder, if there is no room for it.
    """
    folder, advice = scratch, ""
    with ExitStack() as stack:
        try:
            if folder is None:
                advice = " Set TMPDIR to another folder."
                folder = Path(tempfile.gettempdir())
            make_folder(folder)
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, suffix=suffix))
            for part in _parts(member):
                file.write(part)
            file.flush()
        except OSError as error:
            where = f" to {folder}" if folder else ""
            raise StorageError(
                f"no copy of {member} can be written{where}: {error.strerror}.{advice}"
            ) from None
        try:
            yield Path(file.name)
        except FrameError as error:
            raise FrameError(str(error).replace(file.name, str(member))) from None


def _parts(member: Member) -> Iterator[bytes]:
    """Yields the bytes of a member of a tar. Raises FrameError, naming it, if that is not there."""
    for start in range(0, member.size, AT_ONCE):
        place = member.offset + start, min(AT_ONCE, member.size - start)
        try:
            yield from read_parts(member.tar, [place])
        except OSError as error:
            raise FrameError(f"{member} cannot be read: {error.strerror}.") from None


def read_film(
    member: Member, suffix: str, scratch: Path | None = None, **how: Any
) -> Iterator[Frame]:
    """Decodes a video of a tar as `read_video` does."""
    with lent(member, suffix, scratch) as path:
        yield from read_video(path, **how)


def look_at_film(member: Member, suffix: str) -> Film:
    """Counts the frames of a video of a tar, and learns what there is to say of it.

    Where its packets tell, one frame is decoded, or else all. Raises FrameError, naming it, if it
    is no video or breaks off.
    """
    about = About()
    with lent(member, suffix) as path:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        count = count_frames(path, about=about)
        frames = read_video(path, threads=1, about=about)
        decoded = sum(1 for _ in (frames if count is None else islice(frames, 1)))
    num_frames = count if count and decoded else decoded
    read = partial(read_film, member, suffix, threads=1)
    return Film(read, num_frames, digest, about.rate, about.notes)


def find_frames(root: Frames, *, skip_broken: bool = False) -> FrameFolder:
    """Finds videos as `scan_frames` does, films in tars among them."""
    return scan_frames(root, skip_broken=skip_broken, look=look_at_film)
