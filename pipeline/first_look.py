"""What videos say of themselves: size, rate and length, from their headers, decoding no frame."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.video.stream import VideoStream

from pipeline.errors import FrameError

NO_VIDEOS = ("image2", "tty")
"""FFmpeg's readers of single pictures and of text, which claim to be videos."""


@dataclass(frozen=True)
class Footage:
    """One video, by its header."""

    path: Path
    width: int
    height: int
    rate: float
    """Frames a second, on average."""
    frames: int

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.frames / self.rate


def look(path: Path) -> Footage | None:
    """Returns what a file's header says of its video, or None if it is no video with a length."""
    try:
        with av.open(str(path)) as container:
            name = container.format.name
            streams = [s for s in container.streams.video if not _is_cover(s)]
            if not streams or name in NO_VIDEOS or name.endswith("_pipe"):
                return None
            stream = streams[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            frames = stream.frames or round(_seconds(container, stream) * rate)
            if not frames:  # No header tells: count what would be decoded.
                frames = sum(1 for packet in container.demux(stream) if packet.size)
            if not (rate > 0 and frames > 1 and stream.width and stream.height):
                return None
            return Footage(path, stream.width, stream.height, rate, frames)
    except (av.FFmpegError, OSError, UnicodeError):
        return None


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _seconds(container: av.container.InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def look_at_folder(folder: Path) -> tuple[list[Footage], list[str]]:
    """Looks at every file below `folder`; also returns the names of those that are no videos.

    Raises FrameError if there is no video.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if not path.name.startswith(".")]
    seen = {path: look(path) for path in files}
    footage = [found for found in seen.values() if found]
    others = [str(path.relative_to(folder)) for path, found in seen.items() if not found]
    if not footage:
        raise FrameError(
            f"{folder} holds no video that FFmpeg knows ({len(others)} other files"
            + (f", such as {others[0]}" if others else "")
            + "); give another --videos. Frames need no `extract`: `mebt tokenize --frames` reads "
            "them."
        )
    return footage, others


def describe(footage: Sequence[Footage]) -> str:
    """Says in one line what there is."""
    count, seconds = len(footage), sum(video.seconds for video in footage)
    rates = sorted({round(video.rate, 2) for video in footage})
    sizes = sorted({(video.width, video.height) for video in footage}, key=lambda s: min(s))
    frames = statistics.median(video.frames for video in footage)
    return (
        f"{count} video{'s' * (count > 1)}, {_time(seconds)} in all, {_span(rates, '{:g}')} frames "
        f"a second, {_span(sizes, '{0[0]}x{0[1]}')} pixels, {frames:,.0f} frames "
        + ("each" if count > 1 else "long")
    )


def _span(values: Sequence[object], form: str) -> str:
    first, last = form.format(values[0]), form.format(values[-1])
    return first if first == last else f"{first} to {last}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
