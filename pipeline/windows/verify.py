"""Frames that cannot be used: all of them found, before they are needed, and named."""

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from lightning_fabric import Fabric

from pipeline.errors import FrameError
from pipeline.frames.damage import look
from pipeline.frames.films import FilmFrame
from pipeline.frames.images import FrameFile
from pipeline.frames.scan import Video
from pipeline.frames.workers import decoders
from pipeline.progress import progress
from pipeline.ranks import gathered
from pipeline.windows.plan import Plan, TokenizeConfig

LOOKED_AT = 64
"""Frames that a process decodes in one go."""
MAX_WORKERS = 8
SHOWN = 3
"""Damaged frames that one line names; of more it names the first."""


def verify_frames(
    videos: Sequence[Video], plan: Plan, config: TokenizeConfig, fabric: Fabric
) -> bool:
    """Decodes every frame of the videos that have a window, each process its part.

    Raises FrameError in the first process if any cannot be used; the others return False.
    """
    advice = "Nothing was made of any frame yet; mend them, or leave out their videos."
    return _verify(videos, plan, config, fabric, advice)


def name_damaged(
    videos: Sequence[Video], plan: Plan, config: TokenizeConfig, fabric: Fabric, *, step: int
) -> bool:
    """Names all damaged frames, now that one stopped a run at `step`; else as `verify_frames`."""
    advice = f"Step {step} is saved: once all are mended, the same command goes on."
    return _verify(videos, plan, config, fabric, advice)


def _verify(
    videos: Sequence[Video], plan: Plan, config: TokenizeConfig, fabric: Fabric, advice: str
) -> bool:
    used = set(zip(*(plan.table[key].to_pylist() for key in ("split", "video")), strict=True))
    damaged = damaged_frames(
        [video for video in videos if (video.split, video.name) in used],
        config,
        part=fabric.global_rank,
        parts=fabric.world_size,
    )
    return refuse_damaged(gathered(fabric, damaged), advice, fabric)


def damaged_frames(
    videos: Sequence[Video], config: TokenizeConfig, *, part: int = 0, parts: int = 1
) -> list[str]:
    """Decodes all frames of videos, or one of several parts; says what is wrong, a line each."""
    pieces = [piece for video in videos for piece in _pieces(video)][part::parts]
    # Nothing else is at work now; few frames are sooner done than a process is started.
    workers = min(len(pieces) // 4, MAX_WORKERS, max(1, (os.cpu_count() or 1) // parts))
    check = partial(look, size=config.size, as_stored=config.as_stored)
    found: list[str] = []
    with (
        decoders(workers) as pool,
        progress("verify frames", sum(map(len, pieces)), "frame", shown=part == 0) as advance,
    ):
        begun = ((piece, pool.submit(check, piece)) for piece in pieces)
        waiting = deque(itertools.islice(begun, 2 * max(1, workers)))
        while waiting:
            piece, looked = waiting.popleft()
            found += looked.result()
            waiting.extend(itertools.islice(begun, 1))
            advance(len(piece))
    return found


def _pieces(video: Video) -> Iterator[Sequence[FrameFile]]:
    """Yields the frames of a video, some at a time; of a film the last, which is behind all."""
    if isinstance(video.frames[0], FilmFrame):
        yield video.frames[-1:]
        return
    for first in range(0, len(video.frames), LOOKED_AT):
        # With the first, whose size all others must have.
        yield (video.frames[:1] if first else ()) + video.frames[first : first + LOOKED_AT]


def refuse_damaged(damaged: Sequence[str], advice: str, fabric: Fabric | None = None) -> bool:
    """Raises FrameError in the first process if frames are damaged; the others return False.

    It names a few, each once; of more the first, and before that all.
    """
    damaged = list(dict.fromkeys(damaged))
    if not damaged or (fabric and not fabric.is_global_zero):
        return not damaged
    shown, more = " ".join(damaged), ""
    if len(damaged) > SHOWN:
        for line in damaged:
            print(f"damaged: {line}", file=sys.stderr)
        shown, more = damaged[0], " All are listed above."
    count = "a frame" if len(damaged) == 1 else f"{len(damaged):,} frames"
    raise FrameError(f"{count} cannot be used: {shown}{more} {advice}")
