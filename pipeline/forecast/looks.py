"""Still and near-duplicate clips, told by a few small grey pictures of each."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.frames.images import FrameFile, read_images
from pipeline.video.footage import Footage, open_video, reading_errors

LOOKS, SIDE = 4, 16
"""Pictures of each clip, evenly spread over its time, and their side."""
LEVELS = 6
"""Pictures look alike if no place of them is further apart than so many grey levels."""
FIRST_FRAMES = 240
"""Frames that are looked at of a video that does not say how long it is."""

Looks = UInt8[np.ndarray, "4 16 16"]


def look_at_video(path: Path) -> Looks | None:
    """Looks at a video file, decoding little more than a few of its frames; None: it has none.

    Of one that does not say how long it is, or in which nothing can be found, at its first frames.
    Raises FrameError, naming the file, where it cannot be decoded.
    """
    with open_video(path) as footage, reading_errors(path):
        found = _sought(footage)
    if len(found) == LOOKS:
        return np.stack(found)
    with open_video(path) as footage, reading_errors(path):
        frames = islice(footage.container.decode(footage.stream), FIRST_FRAMES)
        return chosen([_grey(frame) for frame in frames])


def _sought(footage: Footage) -> list[UInt8[np.ndarray, "16 16"]]:
    """Returns the pictures at even times, as far as they are found."""
    stream, container = footage.stream, footage.container
    if not stream.time_base:
        return []
    duration = stream.duration or int((container.duration or 0) / av.time_base / stream.time_base)
    found = []
    for number in range(LOOKS if duration else 0):
        wanted = (stream.start_time or 0) + duration * (2 * number + 1) // (2 * LOOKS)
        container.seek(wanted, stream=stream)
        last = None
        for last in container.decode(stream):
            if last.pts is None or last.pts >= wanted:
                break
        if last is not None:  # At the end of a video, its last frame.
            found.append(_grey(last))
    return found


def look_at_frames(
    frames: Sequence[FrameFile], *, as_stored: bool
) -> tuple[Looks, tuple[int, int]]:
    """Looks at a video of images; returns the size of its frames, (width, height), too.

    Raises FrameError if one of those that are looked at cannot be used.
    """
    places = _places(len(frames))
    images = list(read_images([frames[place] for place in places], as_stored=as_stored))
    grey = [
        np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
        for image in images
    ]
    return np.stack(grey), images[0].size


def chosen(pictures: Sequence[UInt8[np.ndarray, "16 16"]]) -> Looks | None:
    """Returns those of all small pictures of a clip that are kept; None if there is none."""
    return np.stack([pictures[n] for n in _places(len(pictures))]) if pictures else None


def small(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "16 16"]:
    """Returns a frame as it is looked at."""
    grey = Image.fromarray(frame).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def _places(count: int) -> list[int]:
    return [count * (2 * number + 1) // (2 * LOOKS) for number in range(LOOKS)]


def _grey(frame: av.VideoFrame) -> UInt8[np.ndarray, "16 16"]:
    small = frame.reformat(width=SIDE, height=SIDE, format="gray", interpolation="AREA")
    return small.to_ndarray().astype(np.uint8, copy=False)


def is_still(looks: Looks) -> bool:
    """Says whether all pictures of a clip look alike."""
    return int(np.ptp(looks.astype(np.int16), axis=0).max()) <= LEVELS


def duplicates(clips: Sequence[Looks]) -> list[tuple[int, int]]:
    """Returns the pairs (earlier, later) of clips that look alike; of each later one the first.

    What looks alike has means that are no further apart, so few pairs are compared in full.
    """
    if not clips:
        return []
    stack = np.stack(clips).reshape(len(clips), -1)
    means = stack.mean(axis=1)
    order = np.argsort(means, kind="stable")
    ordered = means[order]
    first: dict[int, int] = {}
    for place, clip in enumerate(order.tolist()):
        stop = int(np.searchsorted(ordered, ordered[place] + LEVELS, side="right"))
        others = order[place + 1 : stop]
        for other in others[_alike(stack, clip, others)].tolist():
            early, late = min(clip, other), max(clip, other)
            first[late] = min(early, first.get(late, early))
    return sorted((early, late) for late, early in first.items())


def _alike(
    stack: UInt8[np.ndarray, "n P"], clip: int, others: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Says which of `others` look like a clip, first by every 61st pixel."""
    ours = stack[clip].astype(np.int16)
    few: np.ndarray[Any, Any] = np.abs(stack[others, ::61] - ours[::61]).max(axis=1) <= LEVELS
    for place in np.flatnonzero(few):
        few[place] = np.abs(stack[others[place]] - ours).max() <= LEVELS
    return few
