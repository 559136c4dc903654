"""The clips that are cut from one video, in time and in place."""

import itertools
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from errno import ENAMETOOLONG
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.errors import FrameError
from pipeline.frames.images import Frame, crop_resize
from pipeline.size import Size
from pipeline.storage.files import make_folder, remove
from pipeline.video.footage import About
from pipeline.video.tiles import ExtractConfig, motion, tiles

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""
Save = Callable[[Frame, Box, str], None]


@dataclass(frozen=True)
class Source:
    """One video: its name, what identifies its content, and how to read it."""

    name: str
    content: str
    read: Callable[..., Iterator[Frame]]
    """Takes `about`, which learns what there is to say of the video, and `threads` to decode in."""
    split: str | None = None
    """Where all of it goes; None: it is cut in time."""
    about: dict[str, str] = field(default_factory=dict)
    """What is known of it besides: `source`, `caption` and `label`, if it came in a shard."""
    states: Callable[[], pa.Table] | None = None
    """Returns numbers of each of its frames, if there are any, with a column `time`, in seconds."""
    lend: Callable[[], AbstractContextManager[Path]] | None = None
    """Lends the file of the video; None: it lies in none of its own."""


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one tile that are kept together."""

    split: str
    name: str
    numbers: range
    """Frames of the video."""
    tile: int

    @property
    def folder(self) -> str:
        """Where its frames go, below the folder of all."""
        return f"{self.split}/{self.name}"

    def file(self, number: int, kind: str) -> str:
        """Returns where a frame goes, below the folder of all."""
        return f"{self.folder}/{self.name}_{number:05d}.{kind}"


def cut_in_time(
    num_frames: int, config: ExtractConfig, split: str | None = None
) -> Iterator[tuple[str, range]]:
    """Cuts a video's time into clips; train comes before test, unless all goes to one `split`."""
    num_test = round(num_frames * config.test_share)
    if split is not None:
        num_test = num_frames if split == "test" else 0
    first_test = num_frames - num_test
    for part, start, stop in (("train", 0, first_test), ("test", first_test, num_frames)):
        length = config.clip_frames or max(1, stop - start)
        for first in range(start, stop, length):
            yield part, range(first, min(first + length, stop))


def extract_video(
    source: Source, out: Path, staged: Path, config: ExtractConfig, *, threads: int
) -> dict[str, Any]:
    """Writes the clips of one video below `out`. Returns the record of what was kept and rejected.

    Frames are written as they are decoded, into the folder `staged`, and moved when all is well:
    a video that breaks off leaves nothing. At most a few frames are held, but with `min_motion`
    those of a clip, and the video is decoded once more before, to know where clips end. Raises
    FrameError if the video cannot be used.
    """
    remove(staged)
    make_folder(staged)
    about = About()
    try:
        with _saver(config.size, threads) as save:
            if config.min_motion:
                clips, rejected = _moving_clips(source, staged, config, about, threads, save)
            else:
                clips, rejected = _all_clips(source, staged, config, about, threads, save), []
        _move(clips, staged, out, config)
    finally:
        remove(staged)
    kept = [
        {
            "split": clip.split,
            "name": clip.name,
            "frames": [clip.file(number, config.image) for number in clip.numbers],
        }
        for clip in clips
    ]
    return {"kept": kept, "rejected": rejected, "notes": about.notes, "rate": about.rate}


def _move(clips: Sequence[Clip], staged: Path, out: Path, config: ExtractConfig) -> None:
    """Moves frames to their places. Raises FrameError if they cannot be named after their video."""
    for clip in clips:
        try:
            (out / clip.folder).mkdir(parents=True, exist_ok=True)
            for number in clip.numbers:
                place = f"{out}/{clip.file(number, config.image)}"
                os.replace(_staged(staged, clip.tile, number, config), place)  # noqa: PTH105
        except OSError as error:
            if error.errno != ENAMETOOLONG:
                raise
            with suppress(OSError):  # Of such a folder not even whether it exists can be asked.
                remove(out / clip.folder)
            raise FrameError(f"the name of {clip.name} is too long; rename the video.") from None


def _staged(folder: Path, tile: int, number: int, config: ExtractConfig) -> str:
    # Text, not Path: there may be millions of frames.
    return f"{folder}/{tile}-{number}.{config.image}"


@contextmanager
def _saver(size: Size, threads: int) -> Iterator[Save]:
    """Yields what saves a box of a frame, resized, in so many threads; never far behind."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def save(frame: Frame, box: Box, path: str) -> None:
            waiting.append(pool.submit(_save, path, frame, box, size))
            while len(waiting) > 2 * threads:
                waiting.popleft().result()

        try:
            yield save
            while waiting:
                waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _save(path: str, frame: Frame, box: Box, size: Size) -> None:
    """Writes a tile of a frame, resized."""
    left, top, right, bottom = box
    settings: dict[str, Any] = {"quality": 95}
    if path.endswith(".png"):  # Of zlib's ways the fastest, and for photos smaller than level 1.
        settings = {"compress_type": zlib.Z_RLE}
    crop_resize(Image.fromarray(frame[top:bottom, left:right]), size).save(path, **settings)


def _boxes(source: Source, frame: Frame, config: ExtractConfig) -> dict[str, Box]:
    """Returns the tiles of a video. Raises FrameError if there is room for none."""
    height, width = frame.shape[:2]
    boxes = tiles(width, height, config)
    if not boxes:
        raise FrameError(f"{source.name} is {width}x{height}, smaller than tile {config.tile}.")
    return boxes


def _frames(source: Source, about: About, threads: int) -> Generator[Frame]:
    """Reads a video. Raises FrameError if it holds nothing or changes its size."""
    first: tuple[int, ...] | None = None
    for frame in source.read(about=about, threads=threads):
        first = first or frame.shape
        if frame.shape != first:
            raise FrameError(
                f"{source.name} changes its size from {first[1]}x{first[0]} to "
                f"{frame.shape[1]}x{frame.shape[0]}."
            )
        yield frame
    if first is None:
        raise FrameError(f"{source.name} holds no frame.")


def _all_clips(
    source: Source,
    staged: Path,
    config: ExtractConfig,
    about: About,
    threads: int,
    save: Save,
) -> list[Clip]:
    """Saves every tile of every frame; only then it is known where clips begin and end."""
    boxes: dict[str, Box] = {}
    num_frames = 0
    for frame in _frames(source, about, threads):
        boxes = boxes or _boxes(source, frame, config)
        for tile, box in enumerate(boxes.values()):
            save(frame, box, _staged(staged, tile, num_frames, config))
        num_frames += 1
    return _cut(source, num_frames, boxes, config)


def _cut(
    source: Source, num_frames: int, boxes: Mapping[str, Box], config: ExtractConfig
) -> list[Clip]:
    return [
        Clip(split, source.name + suffix + _moment(numbers, config), numbers, tile)
        for split, numbers in cut_in_time(num_frames, config, source.split)
        for tile, suffix in enumerate(boxes)
    ]


def plan_clips(
    source: Source, config: ExtractConfig, num_frames: int | None
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Returns the clips that `extract_video` would keep, and those that it would reject.

    Decodes all of the video, but its first frame alone if `num_frames` is known and clips need not
    move. Raises FrameError if the video cannot be used.
    """
    if config.min_motion:
        return _moving_clips(source, Path(), config, About(), 1, _save_nothing)
    if num_frames is None:
        return _all_clips(source, Path(), config, About(), 1, _save_nothing), []
    with closing(_frames(source, About(), 1)) as frames:
        return _cut(source, num_frames, _boxes(source, next(frames), config), config), []


def _save_nothing(frame: Frame, box: Box, path: str) -> None:
    pass


def _moment(numbers: range, config: ExtractConfig) -> str:
    """Names the time of a clip, if a video has several."""
    return f"-f{numbers.start:05d}" if config.clip_frames else ""


def _moving_clips(
    source: Source,
    staged: Path,
    config: ExtractConfig,
    about: About,
    threads: int,
    save: Save,
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Saves the tiles of clips in which enough moves; returns these, and the others' names."""
    num_frames = sum(1 for _ in _frames(source, About(), threads))
    frames = _frames(source, about, threads)
    clips: list[Clip] = []
    rejected: list[tuple[str, str]] = []
    for split, numbers in cut_in_time(num_frames, config, source.split):
        pixels = list(itertools.islice(frames, len(numbers)))
        moves = motion(pixels)
        for tile, (suffix, box) in enumerate(_boxes(source, pixels[0], config).items()):
            name = source.name + suffix + _moment(numbers, config)
            left, top, right, bottom = box
            moved = moves[top:bottom, left:right].mean()
            if moved < config.min_motion:
                rejected.append((f"{split}/{name}", f"still: {moved:.4f} of its pixels move"))
                continue
            clips.append(Clip(split, name, numbers, tile))
            for number, frame in zip(numbers, pixels, strict=True):
                save(frame, box, _staged(staged, tile, number, config))
    next(frames, None)  # To its end: what there is to say of a video is known only then.
    return clips, rejected


def median_rate(records: Sequence[dict[str, Any]]) -> float | None:
    """Returns the frames a second of the middle one of all frames; None if nobody knows."""
    weights: dict[float, int] = {}
    for record in records:
        if record.get("rate"):
            count = sum(len(clip["frames"]) for clip in record["kept"])
            weights[record["rate"]] = weights.get(record["rate"], 0) + count
    half = math.ceil(sum(weights.values()) / 2)
    for rate, count in sorted(weights.items()):
        half -= count
        if half <= 0:
            return rate
    return None
