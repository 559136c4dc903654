"""Frames per second: what frames, tokens and models know of theirs, and what videos play at."""

from pathlib import Path

from pipeline.errors import FrameError
from pipeline.storage.files import parse_json
from pipeline.storage.places import Place, open_file

RECORD = "extract.json"
"""What `mebt extract` writes beside the frames that it made."""
UNKNOWN = 8.0
"""What videos play at whose rate nobody knows."""
MAX_FPS = 1_000_000
"""A rate of frames that is not believed any more."""
DIFFERENT = 1.02
"""Rates further apart than this factor are two: 29.97 and 30 are one."""
SLOWEST, FASTEST = 0.1, 1000.0
"""What videos may play at."""


def check_rate(fps: float | None) -> None:
    """Raises ValueError for a rate at which no video is to play."""
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise ValueError(f"fps must be in [{SLOWEST}, {FASTEST:.0f}], got {fps}.")


def recorded_rate(frames: Place | None) -> float | None:
    """Returns the rate of frames as `mebt extract` wrote it in their folder; None: not known.

    Raises FrameError if what is written there is no rate.
    """
    if frames is None:
        return None
    place = frames / RECORD if isinstance(frames, Path) else f"{frames}/{RECORD}"
    try:
        with open_file(place) as file:
            fps = parse_json(file.read(), place, FrameError, "frame folder").get("fps")
    except FileNotFoundError:
        return None
    if fps is None:
        return None
    is_number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if not is_number or not 0 < fps < MAX_FPS:
        raise FrameError(
            f"{place}: fps is {fps!r}, but must be a number above 0 and below {MAX_FPS:,}; set "
            "tokenize.fps, or make the frames again with `mebt extract`."
        )
    return float(fps)


def playing_rate(asked: float | None, known: float | None) -> tuple[float, str]:
    """Returns what videos play at, and what is to be said of it: nothing if all is as expected.

    `asked` is decode.fps, `known` the rate of the tokens' frames.
    """
    if asked is not None:
        return asked, ""
    if known is None:
        return UNKNOWN, f"rate unknown: playing at {UNKNOWN:g} frames a second; set decode.fps"
    if SLOWEST <= known <= FASTEST:
        return known, ""
    fps = min(max(known, SLOWEST), FASTEST)
    return fps, f"{known:g} frames a second are not played: playing at {fps:g}; set decode.fps"
