"""Reads size, rate and length of videos from their headers, decoding no frame."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av

from pipeline.errors import FrameError
from pipeline.frames.scan import files_below
from pipeline.frames.tars import FILMS
from pipeline.storage.files import printable
from pipeline.video.episodes import is_lerobot, list_episodes, no_cameras
from pipeline.video.footage import Footage, open_video


@dataclass(frozen=True)
class Seen:
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


def look(path: Path) -> Seen | None:
    """Returns what a file's header says of its video, or None if it is no video of some frames."""
    try:
        with open_video(path) as video:
            stream = video.stream
            rate = float(stream.average_rate or video.rate)
            frames = stream.frames or round(_seconds(video) * rate)
            if not frames:  # No header tells: count what would be decoded.
                frames = sum(1 for packet in video.container.demux(stream) if packet.size)
            if not (rate > 0 and frames > 1 and stream.width and stream.height):
                return None
            return Seen(path, stream.width, stream.height, rate, frames)
    except (FrameError, OSError):
        return None


def _seconds(video: Footage) -> float:
    stream = video.stream
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (video.container.duration or 0) / av.time_base


def look_at_folder(folder: Path, cameras: Sequence[str] = ()) -> tuple[list[Seen], list[str]]:
    """Looks at the files that `extract` would; also returns the names of those that are no videos.

    Of a LeRobot data set each episode of these cameras is a video, of all if none is named. Raises
    FrameError if there is no video.
    """
    if is_lerobot(folder):
        footage, others = _look_at_episodes(folder, cameras)
    elif cameras:
        raise no_cameras(folder)
    else:
        files = files_below(folder, suffixes=FILMS, skip=[])
        seen = {path: None if reason else look(path) for path, reason in files}
        footage = [video for video in seen.values() if video]
        others = [printable(str(path.relative_to(folder))) for path in seen if not seen[path]]
    if not footage:
        such = f", such as {others[0]}" if others else ""
        tars = any(name.endswith(".tar") for name in others)
        advice = "tars are not looked into, so leave out" if tars else "give another"
        raise FrameError(
            f"{folder} holds no video that FFmpeg knows ({len(others)} other files{such}); "
            f"{advice} --videos. Frames need no `extract`: `mebt tokenize --frames` reads them."
        )
    return footage, others


def _look_at_episodes(folder: Path, cameras: Sequence[str]) -> tuple[list[Seen], list[str]]:
    episodes = list_episodes(folder, cameras)
    files = {row["files"][camera] for _, camera, row in episodes.videos()}
    seen = {path: look(path) for path in sorted(files)}
    footage, others = [], [rejected.name for rejected in episodes.rejected]
    for name, camera, row in episodes.videos():
        path = row["files"][camera]
        if (file := seen[path]) and 1 < row["length"] <= file.frames:
            about = {"path": path.with_name(name), "frames": row["length"], "rate": episodes.rate}
            footage.append(replace(file, **about))
        else:
            others.append(name)
    return footage, others


def describe(footage: Sequence[Seen]) -> str:
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
