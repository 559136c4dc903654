"""Windows that share no frame, evenly spread over all videos, to be looked at."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.frame_list import source_of
from pipeline.frames.given import Frames, folder_of
from pipeline.frames.listing import list_frames
from pipeline.rates import playing_rate, recorded_rate
from pipeline.store.reader import spread_rows
from pipeline.video.films import find_frames
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows


@dataclass(frozen=True)
class WindowsApart:
    """Some windows of footage, and what they are of."""

    reader: WindowReader
    places: list[tuple[str, str, int]]
    """Split, video and first frame of each."""
    source: str
    """Fingerprint of all frames."""
    fps: float
    """What they play at."""
    notes: list[str]
    """What one might not expect of the frames."""


def windows_apart(
    frames: Frames, config: TokenizeConfig, limit: int, *, skip_broken: bool = False
) -> WindowsApart:
    """Chooses up to `limit` windows of frames; `config.hop` has no say.

    Raises FrameError if there is no window, or a frame is listed but missing.
    """
    found = find_frames(frames, skip_broken=skip_broken)
    videos = found.videos
    plan = plan_windows(videos, replace(config, hop=config.span)).table
    chosen = plan.take(np.asarray(spread_rows(len(plan), limit), np.int64))
    columns = (chosen[key].to_pylist() for key in ("split", "video", "first_frame"))
    rate = config.fps or recorded_rate(folder_of(frames)) or found.rate(at_least=config.span)
    fps, said = playing_rate(None, None if rate is None else rate / config.stride)
    notes = found.notes(as_stored=config.as_stored)
    if said:
        notes.append(said.replace("decode.fps", "tokenize.fps"))
    return WindowsApart(
        WindowReader(videos, config, cache_bytes=0),
        list(zip(*columns, strict=True)),
        source_of(list_frames(videos, frames)),
        fps,
        notes,
    )
