"""Videos, and the clips of square frames that are cut from each, in time and in place."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import FrameError
from pipeline.files import sha256_file
from pipeline.frames import Rejected, files_below
from pipeline.images import Frame, crop_resize
from pipeline.reader import read_video
from pipeline.video import ExtractConfig, motion, moving_shapes, tiles

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif")
WHOLE_CLIP_BUFFER = 64
"""Frames of a clip without a fixed length that are held before they are written."""
SYNTHETIC_FRAMES = 64


@dataclass(frozen=True)
class Source:
    """One video: its name, what identifies its content, and how to read it."""

    name: str
    content: str
    read: Callable[[], Iterator[Frame]]


def find_videos(
    folder: Path, config: ExtractConfig, *, out: Path
) -> tuple[list[Source], list[Rejected]]:
    """Lists the videos under `folder`; every other file is rejected with a reason.

    What lies in `out` is left out: it was made, not given. Every video has a name of its own.
    """
    if folder.resolve().is_relative_to(out.resolve()):
        raise FrameError(f"{out} holds the videos themselves; choose another --out.")
    sources: list[Source] = []
    rejected = []
    taken: set[str] = set()
    for path, reason in files_below(folder, folder, suffixes=VIDEOS, skip=[out]):
        relative = path.relative_to(folder)
        if not reason and path.suffix.lower() not in VIDEOS:
            reason = "no video by its extension"
        if reason:
            rejected.append(Rejected(str(relative), reason))
            continue
        name = _free_name(relative, taken)
        taken.add(name)
        read = partial(read_video, path, fps=config.fps, filters=config.filters)
        sources.append(Source(name, sha256_file(path), read))
    return sources, rejected


def _free_name(relative: Path, taken: set[str]) -> str:
    """Names a video after its path, as shortly as can be without a name that is taken."""
    joined = "-".join(relative.with_suffix("").parts)
    # A line break in a name would break a line of train.txt.
    plain = "".join(c if c.isprintable() and c != " " else "_" for c in joined)
    full = plain + relative.suffix.replace(".", "-")
    names = itertools.chain([plain, full], (f"{full}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)


def synthetic_videos(count: int, config: ExtractConfig) -> list[Source]:
    """Lists `count` seeded videos of moving shapes."""
    return [
        Source(
            f"shapes{i:05d}",
            f"moving shapes {config.seed} {i}",
            partial(moving_shapes, SYNTHETIC_FRAMES, config.size, seed=config.seed * 2**20 + i),
        )
        for i in range(count)
    ]


def cut_in_time(num_frames: int, config: ExtractConfig) -> Iterator[tuple[str, int, int]]:
    """Cuts a video's time into clips (split, first, stop); train comes before test."""
    first_test = num_frames - round(num_frames * config.test_share)
    for split, start, stop in (("train", 0, first_test), ("test", first_test, num_frames)):
        length = config.clip_frames or max(1, stop - start)
        for first in range(start, stop, length):
            yield split, first, min(first + length, stop)


def _save(path: Path, frame: Frame, box: tuple[int, int, int, int], size: int) -> None:
    """Writes a tile of a frame, resized."""
    left, top, right, bottom = box
    # PNG level 1: frames are read more often than they are sent anywhere.
    settings: dict[str, Any] = {"quality": 95} if path.suffix == ".jpg" else {"compress_level": 1}
    crop_resize(Image.fromarray(frame[top:bottom, left:right]), size).save(path, **settings)


def write_frames(source: Source, out: Path, config: ExtractConfig) -> dict[str, Any]:
    """Writes the clips of one video. Returns the record of what was kept and rejected.

    Raises FrameError if the video cannot be used.
    """
    shapes = [frame.shape for frame in source.read()]
    if not shapes:
        raise FrameError(f"{source.name} holds no frame.")
    height, width = shapes[0][:2]
    # Whatever is wrong with a video shows before its first frame is written.
    if other := next((shape for shape in shapes if shape != shapes[0]), None):
        raise FrameError(
            f"{source.name} changes its size from {width}x{height} to {other[1]}x{other[0]}."
        )
    boxes = tiles(width, height, config)
    if not boxes:
        raise FrameError(f"{source.name} is {width}x{height}, smaller than tile {config.tile}.")
    kept: list[dict[str, Any]] = []
    rejected: list[tuple[str, str]] = []
    frames = source.read()
    with ThreadPoolExecutor() as pool:
        for split, first, stop in cut_in_time(len(shapes), config):
            moment = f"-f{first:05d}" if config.clip_frames else ""
            for start in range(first, stop, config.clip_frames or WHOLE_CLIP_BUFFER):
                numbers = range(start, min(start + (config.clip_frames or WHOLE_CLIP_BUFFER), stop))
                pixels = list(itertools.islice(frames, len(numbers)))
                moves = motion(pixels) if config.min_motion else np.ones((height, width), np.bool_)
                writes = []
                for suffix, box in boxes.items():
                    name = source.name + suffix + moment
                    left, top, right, bottom = box
                    moved = moves[top:bottom, left:right].mean()
                    if moved < config.min_motion:
                        reason = f"still: {moved:.4f} of its pixels move"
                        rejected.append((f"{split}/{name}", reason))
                        continue
                    folder = out / split / name
                    folder.mkdir(parents=True, exist_ok=True)
                    paths = [folder / f"{name}_{n:05d}.{config.image}" for n in numbers]
                    writes += [
                        pool.submit(_save, path, frame, box, config.size)
                        for path, frame in zip(paths, pixels, strict=True)
                    ]
                    files = [str(path.relative_to(out)) for path in paths]
                    kept.append({"split": split, "name": name, "frames": files})
                for write in writes:
                    write.result()
    return {"kept": kept, "rejected": rejected}
