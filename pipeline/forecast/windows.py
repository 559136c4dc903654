"""How many windows clips hold, by the planning that `tokenize` does; and frames to be read."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.frames.scan import Video
from pipeline.windows.plan import TokenizeConfig, window_starts

HOPS = (1, 2, 4, 8, 16)


def windows_at_hops(videos: Sequence[Video], config: TokenizeConfig) -> dict[int, dict[str, int]]:
    """Counts the windows of each split at usual hops, the one of `config`, and without overlap."""
    hops = sorted({*HOPS, config.hop, config.span})
    return {hop: count_windows(videos, replace(config, hop=hop)) for hop in hops}


def count_windows(videos: Iterable[Video], config: TokenizeConfig) -> dict[str, int]:
    """Counts the windows of each split, exactly as `plan_windows` lists them."""
    counts: dict[str, int] = {}
    for video in videos:
        starts = len(window_starts(len(video.frames), config))
        counts[video.split] = counts.get(video.split, 0) + starts
    return counts


def frames_read(videos: Iterable[Video], config: TokenizeConfig) -> int:
    """Counts the frames that `tokenize` decodes, a frame that several windows share once."""
    total = 0
    for video in videos:
        starts = window_starts(len(video.frames), config)
        if config.hop < config.span:  # With a stride a few of these are in no window.
            total += starts[-1] + config.span if starts else 0
        else:
            total += len(starts) * config.frames
    return total
