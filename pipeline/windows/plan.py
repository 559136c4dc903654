"""The plan: which windows of which video there are, in which shard; and how to read them."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import TokenizerPrecision
from pipeline.errors import FrameError
from pipeline.frames.images import FrameFile, read_frames
from pipeline.frames.scan import Video
from pipeline.frames.tars import Rejected
from pipeline.rates import check_rate
from pipeline.size import Size, check_size, sides
from pipeline.store.layout import PLAN_SCHEMA

MAX_SHARD_WINDOWS = 1 << 16
"""A shard is held in memory as a whole."""


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Which windows are cut out of the videos, and how their tokens are stored."""

    frames: int = 16
    """Frames of one window."""
    stride: int = 1
    """Frames of the video from one frame of a window to the next."""
    hop: int = 1
    """Frames from one window's start to the next; 1 keeps every start, as published training."""
    size: Size = 128
    """Pixels of the frames that the tokenizer sees: the side of a square, or [height, width]. The
    centre of that shape is cut out and resized, never stretched."""
    batch_size: int = 8
    """Windows encoded at once; changes speed and memory, never the tokens' meaning."""
    shard_windows: int = 4096
    """Windows of one shard file: the unit of work, writing and resuming."""
    chunk_windows: int = 64
    """Windows of one compressed chunk inside a shard; divides shard_windows."""
    fps: float | None = None
    """Frames per second of the frames, 0.1 … 1000; null: what extract.json or films in tars say.
    Tokens do not depend on it; videos of them play at it."""
    seed: int = 0
    """Draws the order in which videos go to shards."""
    as_stored: bool = False
    """Read frames as they lie in the file: EXIF orientation is not applied."""
    precision: TokenizerPrecision = "32-true"
    """Of the tokenizer's convolutions. bf16-mixed is faster where the device multiplies in it, and
    about one token in a hundred is another: the store says so, and is not mixed with exact ones."""

    def __post_init__(self) -> None:
        fields = ("frames", "stride", "hop", "batch_size", "shard_windows", "chunk_windows")
        for name in fields:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        object.__setattr__(self, "size", check_size("size", self.size))
        if self.shard_windows > MAX_SHARD_WINDOWS:
            raise ValueError(
                f"shard_windows must be at most {MAX_SHARD_WINDOWS}, got {self.shard_windows}."
            )
        check_rate(self.fps)
        if self.shard_windows % self.chunk_windows:
            raise ValueError(
                f"shard_windows must be a multiple of chunk_windows, got {self.shard_windows} and "
                f"{self.chunk_windows}."
            )

    @property
    def span(self) -> int:
        """Frames of the video from a window's first frame to its last, both included."""
        return (self.frames - 1) * self.stride + 1

    def in_store(self, *, causal: bool) -> dict[str, Any]:
        """Returns what a store says of these values, and of a tokenizer that is causal or not."""
        keys = ("shard_windows", "chunk_windows", "frames", "stride", "hop", "size")
        extra: dict[str, Any] = {"seed": self.seed}
        # What is as it always was is left out: stores of earlier versions go on.
        if self.as_stored:
            extra["as_stored"] = True
        if causal:
            extra["causal"] = True
        if self.precision != "32-true":
            extra["precision"] = self.precision
        return {**{key: getattr(self, key) for key in keys}, "extra": extra}


@dataclass(frozen=True)
class Plan:
    """Every window, in the order of the arrays that will hold its tokens."""

    table: pa.Table
    """Columns split, shard, row (of the split's array), video, first_frame."""
    rejected: list[Rejected]
    """Videos too short for one window."""

    def num_windows(self, split: str) -> int:
        """Counts the windows of one split."""
        return int(np.sum(self.table["split"].to_numpy(zero_copy_only=False) == split))


def window_starts(num_frames: int, config: TokenizeConfig) -> range:
    """Returns the first frame of every window of a video."""
    return range(0, num_frames - config.span + 1, config.hop)


def plan_windows(videos: Sequence[Video], config: TokenizeConfig) -> Plan:
    """Lists every window of every video, before the first is encoded.

    Videos go to shards in an order drawn by the seed, so that a shard holds a mixture. Raises
    FrameError if no video is long enough.
    """
    # A window finds its video by this pair: two of one name would swap their tokens in silence.
    assert len({(video.split, video.name) for video in videos}) == len(videos), "names repeat"
    rejected = [
        Rejected(
            video.name,
            f"{len(video.frames)} frames, shorter than a window of {config.span}"
            + (f"; {video.numbering}" if video.numbering else ""),
        )
        for video in videos
        if len(video.frames) < config.span
    ]
    rows: list[tuple[str, int, int, str, int]] = []
    for split in sorted({video.split for video in videos}, reverse=True):
        chosen = sorted((video for video in videos if video.split == split), key=lambda v: v.name)
        random.Random(f"{config.seed} {split}").shuffle(chosen)
        row = 0
        for video in chosen:
            for first in window_starts(len(video.frames), config):
                rows.append((split, row // config.shard_windows, row, video.name, first))
                row += 1
    if not rows:
        longest = max(videos, key=lambda video: len(video.frames))
        numbering = f" In {longest.name}, {longest.numbering}." if longest.numbering else ""
        raise FrameError(
            f"no window fits: the longest of {len(videos)} videos has {len(longest.frames)} "
            f"frames, a window spans {config.span} (frames {config.frames}, stride "
            f"{config.stride}).{numbering}"
        )
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(c, f.type) for c, f in zip(columns, PLAN_SCHEMA, strict=True)]
    return Plan(pa.Table.from_arrays(arrays, schema=PLAN_SCHEMA), rejected)


class WindowReader:
    """Reads windows of videos as bytes, keeping the videos last read within a memory budget."""

    def __init__(
        self, videos: Sequence[Video], config: TokenizeConfig, *, cache_bytes: int = 1 << 30
    ) -> None:
        self.videos = {(video.split, video.name): video for video in videos}
        self.config = config
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, str], NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def pixels(self, split: str, video: str, first: int) -> NDArray[np.uint8]:
        """Returns the window that starts at frame `first`, as [T, H, W, 3]."""
        chosen = slice(first, first + self.config.span, self.config.stride)
        frames = self.videos[split, video].frames
        if len(frames) * prod(sides(self.config.size)) * 3 > self.cache_bytes:
            return self._read(frames[chosen])
        return self._whole((split, video))[chosen]

    def _whole(self, key: tuple[str, str]) -> NDArray[np.uint8]:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        pixels = self._read(self.videos[key].frames)
        with self._lock:
            self._cache[key] = pixels
            while sum(item.nbytes for item in self._cache.values()) > self.cache_bytes:
                self._cache.popitem(last=False)
        return pixels

    def _read(self, frames: Sequence[FrameFile]) -> NDArray[np.uint8]:
        return read_frames(frames, size=self.config.size, as_stored=self.config.as_stored)
