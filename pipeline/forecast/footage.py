"""What videos and frames hold: clips with their lengths, what is rejected, what looks alike."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipeline.errors import FrameError
from pipeline.forecast.looks import Looks, chosen, look_at_frames, look_at_video, small
from pipeline.frames.given import Frames
from pipeline.frames.scan import Video, describe_frames
from pipeline.frames.tars import Rejected, reject
from pipeline.params.survey import Seen, look
from pipeline.progress import progress
from pipeline.storage.places import Place
from pipeline.video.clips import Source, plan_clips
from pipeline.video.films import find_frames
from pipeline.video.footage import About
from pipeline.video.packets import count_frames
from pipeline.video.sources import find_videos
from pipeline.video.tiles import ExtractConfig

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass
class Footage:
    """Videos of one kind or another, as they were looked at."""

    videos: list[Video] = field(default_factory=list)
    """As `plan_windows` takes them; of videos that are not extracted yet frames are names alone."""
    sources: list[Source] = field(default_factory=list)
    """What `extract` would read."""
    seen: list[Seen] = field(default_factory=list)
    """Size, rate and length of each given video, where they are known."""
    rejected: list[Rejected] = field(default_factory=list)
    still: list[Rejected] = field(default_factory=list)
    """Clips that `extract.min_motion` leaves out."""
    looks: dict[str, Looks] = field(default_factory=dict)
    """Small pictures of each given video, by its name."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Frames of all clips of each given video that is not extracted yet, by its name."""
    by_packets: int = 0
    """Videos whose frames were counted by their packets: what is damaged inside was not seen."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Looked:
    """One given video."""

    videos: list[Video]
    still: list[Rejected]
    seen: Seen | None
    looks: Looks | None
    by_packets: bool
    notes: dict[str, str]
    """By kind; of what was decoded alone."""


def look_at_videos(
    places: Sequence[Place],
    config: ExtractConfig,
    scratch: Path,
    *,
    cameras: Sequence[str] = (),
    skip_broken: bool = False,
) -> Footage:
    """Finds the clips that `extract` would make of videos; those that it would reject, with reason.

    Frames are counted without decoding where that is sure to give the same number, and
    `extract.min_motion` and filters do not ask for pixels. Videos of tars lie in the folder
    `scratch` while they are read, also by the sources that are kept.
    """
    sources, rejected = find_videos(
        places, config, out=scratch, skip_broken=skip_broken, cameras=cameras, hashed=False
    )
    footage = Footage(rejected=list(rejected), sources=sources)
    notes: dict[str, dict[str, str]] = {}
    for source, found in _all(sources, lambda source: _look(source, config), "look at videos"):
        if isinstance(found, FrameError):
            footage.rejected.append(Rejected(source.name, str(found)))
            continue
        footage.videos += found.videos
        footage.still += found.still
        footage.lengths[source.name] = sum(len(video.frames) for video in found.videos)
        footage.by_packets += found.by_packets
        if found.seen:
            footage.seen.append(found.seen)
        if found.looks is not None:
            footage.looks[source.name] = found.looks
        for kind, text in found.notes.items():
            notes.setdefault(kind, {})[source.name] = text
    for texts in notes.values():
        (name, text), *more = texts.items()
        others = f" (and {len(more)} more videos alike)" if more else ""
        footage.notes.append(f"{name}: {text}{others}")
    if not footage.videos:
        why = [*footage.rejected[len(rejected) :], *rejected, *footage.still]
        such = f"; for example {why[0].name}: {why[0].reason.rstrip('.')}" if why else ""
        raise FrameError(f"{places[0]} holds no video of use ({len(why)} rejected){such}.")
    return footage


def look_at_images(
    frames: Frames, *, as_stored: bool, rate: float | None, skip_broken: bool = False
) -> Footage:
    """Finds the videos of a frame folder or of tars, as `tokenize` does.

    `rate` is their frames a second, if that is known; else what films say. Raises FrameError if
    there is none.
    """
    scanned = find_frames(frames, skip_broken=skip_broken)
    footage = Footage(scanned.videos, rejected=list(scanned.rejected))
    rate = rate or scanned.rate() or 0.0

    def look(video: Video) -> tuple[Looks, tuple[int, int]]:
        return look_at_frames(video.frames, as_stored=as_stored)

    for video, found in _all(scanned.videos, look, "look at frames"):
        if isinstance(found, FrameError):
            footage.rejected.append(reject(video.name, f"{found} tokenize will stop at it."))
            continue
        footage.looks[f"{video.split}: {video.name}"], (width, height) = found
        footage.seen.append(Seen(Path(video.name), width, height, rate, len(video.frames)))
    footage.notes = describe_frames(scanned.videos, as_stored=as_stored)
    return footage


def _all(
    items: Sequence[Item], work: Callable[[Item], Found], what: str
) -> Iterator[tuple[Item, Found | FrameError]]:
    """Yields each item with what was found, or why it cannot be used; several at a time."""

    def tried(item: Item) -> Found | FrameError:
        try:
            return work(item)
        except FrameError as error:
            return error

    with (
        progress(what, len(items), "video") as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for item, found in zip(items, pool.map(tried, items), strict=True):
            yield item, found
            advance(1)


def _look(source: Source, config: ExtractConfig) -> _Looked:
    seen, looks, num_frames, about = None, None, None, About()
    if source.lend is None:  # Images in tars, stretches of longer files: all is read.
        pictures, size = [], (0, 0)
        for frame in source.read(about=about, threads=1):
            pictures.append(small(frame))
            size = frame.shape[1], frame.shape[0]
        looks, num_frames = chosen(pictures), len(pictures)
        seen = Seen(Path(source.name), *size, about.rate or 0.0, num_frames)
    else:
        with source.lend() as path:
            seen = look(path)
            with suppress(FrameError):  # What cannot be looked into may be decoded from its begin.
                looks = look_at_video(path)
            num_frames = count_frames(path, **config.reading)
    clips, still = plan_clips(source, config, num_frames)
    videos = [
        Video(clip.folder, clip.split, tuple(clip.file(n, config.image) for n in clip.numbers))
        for clip in clips
    ]
    counted = source.lend is not None and num_frames is not None and not config.min_motion
    rejected = [Rejected(*pair) for pair in still]
    return _Looked(videos, rejected, seen, looks, counted, about.notes)
