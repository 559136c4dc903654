"""A few real windows of footage, encoded: how well tokens compress, and how long reading takes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from pipeline.errors import FrameError
from pipeline.forecast.footage import Footage
from pipeline.forecast.store_size import sampled_rows
from pipeline.frames.scan import Video, scan_frames
from pipeline.progress import progress
from pipeline.store.layout import StoreInfo
from pipeline.video.clips import Source
from pipeline.video.extract import extract
from pipeline.video.tiles import ExtractConfig
from pipeline.windows.encode import Encode
from pipeline.windows.plan import Plan, TokenizeConfig, WindowReader

LONG = 30.0
"""Seconds after which no further window is encoded."""
EXTRACTED, MAX_FRAMES = 8, 3000
"""Videos that are extracted to take windows of, and the frames of a video beyond which it is taken
only if there is no shorter one."""


@dataclass
class Sample:
    """Tokens of some windows."""

    chunks: list[tuple[str, Int[np.ndarray, "n t h w"]]] = field(default_factory=list)
    """Split and tokens of neighbouring windows of the plan."""
    read_seconds: float = 0.0
    frames_read: int = 0

    @property
    def seconds_per_frame(self) -> float:
        """How long it takes to read a frame."""
        return self.read_seconds / max(1, self.frames_read)


def encode_sample(
    videos: Sequence[Video], plan: Plan, info: StoreInfo, config: TokenizeConfig, encode: Encode
) -> Sample:
    """Encodes windows of a few chunks, spread over the plan; fewer if that takes long.

    Raises FrameError if a frame cannot be used.
    """
    reader, sample = WindowReader(videos, config, cache_bytes=0), Sample()
    rows = sampled_rows(info)
    began = time.perf_counter()
    with progress("encode a sample", sum(len(part) for _, part in rows), "window") as advance:
        for split, part in rows:
            if sample.chunks and time.perf_counter() - began > LONG:
                break
            table = plan.table.filter(np.asarray(plan.table["split"]) == split)
            chosen = table.slice(part.start, len(part))
            columns = (chosen[key].to_pylist() for key in ("video", "first_frame"))
            waiting = list(zip(*columns, strict=True))
            tokens: list[Int[np.ndarray, "n t h w"]] = []
            while waiting and (not tokens or time.perf_counter() - began < LONG):
                batch, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
                start = time.perf_counter()
                pixels = np.stack([reader.pixels(split, *place) for place in batch])
                sample.read_seconds += time.perf_counter() - start
                sample.frames_read += len(batch) * config.frames
                tokens.append(encode(pixels))
                advance(len(batch))
            sample.chunks.append((split, np.concatenate(tokens)))
    return sample


def extract_sample(
    footage: Footage, config: ExtractConfig, folder: Path
) -> tuple[Sequence[Video], float]:
    """Extracts a few short videos into a folder; returns their clips, and seconds per clip frame.

    Raises FrameError if none of them is of use.
    """
    chosen = _short(footage.sources, footage.lengths)
    began = time.perf_counter()
    made = extract(chosen, [], folder, config)
    seconds = (time.perf_counter() - began) / max(1, made.num_frames)
    return scan_frames(folder).videos, seconds


def _short(sources: Sequence[Source], lengths: Mapping[str, int]) -> list[Source]:
    """Chooses videos evenly among those that are not long, or the shortest one."""
    usable = sorted((s for s in sources if lengths.get(s.name)), key=lambda s: lengths[s.name])
    if not usable:
        raise FrameError("no video is of use to take windows of.")
    short = [source for source in usable if lengths[source.name] <= MAX_FRAMES] or usable[:1]
    spread = np.linspace(0, len(short) - 1, min(EXTRACTED, len(short))).round().astype(int)
    return [short[place] for place in np.unique(spread)]
