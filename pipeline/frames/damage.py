"""Frames decoded, or each that is damaged named. Worker processes import it: no torch."""

import errno
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FrameError
from pipeline.frames.films import FilmFrame
from pipeline.frames.images import FrameFile, read_frames
from pipeline.size import Size

OF_ONE_FILE = (errno.EIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""System errors that say something of one file, not of the machine."""


def decode(
    frames: Sequence[FrameFile], *, size: Size, as_stored: bool
) -> NDArray[np.uint8] | list[str]:
    """Reads frames of a video as `read_frames` does, or says of each bad one what is wrong.

    Of a film it says so once.
    """
    pixels = _decode(frames, size, as_stored)
    if not isinstance(pixels, str):
        return pixels
    if isinstance(frames[0], FilmFrame):
        return [pixels]
    damaged: list[str] = []
    whole: list[FrameFile] = []
    for frame in frames:
        found = _decode([*whole[:1], frame], size, as_stored)
        if isinstance(found, str):
            damaged.append(found)
        else:
            whole.append(frame)
    return damaged or [pixels]  # It was mended a moment ago.


def _decode(frames: Sequence[FrameFile], size: Size, as_stored: bool) -> NDArray[np.uint8] | str:
    try:
        return read_frames(frames, size=size, as_stored=as_stored)
    except FrameError as error:
        return str(error)
    except OSError as error:
        if error.errno not in OF_ONE_FILE:
            raise
        return f"{frames[-1]} cannot be read: {error.strerror}."


def look(frames: Sequence[FrameFile], *, size: Size, as_stored: bool) -> list[str]:
    """Says of each frame of a video that cannot be used what is wrong, a line each."""
    found = decode(frames, size=size, as_stored=as_stored)
    return found if isinstance(found, list) else []
