"""The layouts of 1X's world model data sets: v1.1, ids of images, and v2.0, ids of clips.

v1.1: `video.bin` [num_images, h, w] of one type, `segment_ids.bin` int32 and `actions/NAME.bin`
float32 for each of its frames. v2.0: shards N of clips, each of 17 frames, `video_N.bin` int32
[clips, 3, 32, 32]; `segment_idx_N.bin` int32 and `states_N.bin` float32 for each frame; all in one
folder, or each kind in its own. `metadata.json` counts both.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.exchange.arrays import FileArray, open_raw
from pipeline.exchange.folders import left_out, within
from pipeline.exchange.ids import Ids, ImportConfig, Video
from pipeline.rates import MAX_FPS
from pipeline.storage.files import contents, parse_json, printable
from pipeline.store.states import MAX_WIDTH

METADATA, VIDEO, SEGMENTS, ACTIONS = "metadata.json", "video.bin", "segment_ids.bin", "actions"
MAX_METADATA = 1 << 20
"""Bytes of a .json beyond which it is not read."""
TYPES = tuple(f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64))
CLIP_FRAMES, CLIP_GRID, COSMOS_CODES = 17, (3, 32, 32), 64_000
"""Of v2.0: frames of a clip, its ids, and the codebook of Cosmos DV8x8x8, of which they are."""
FOLDERS = {"metadata": "metadata", "video": "videos"}
FOLDERS |= {"segment_idx": "segment_indices", "states": "robot_states"}
"""Of v2.0: where files of a kind are, if not beside metadata.json."""


def open_one_x(folder: Path, config: ImportConfig) -> Ids:
    """Opens a folder of either layout. Raises PipelineError where its files disagree."""
    if config.levels:
        raise PipelineError(f"{folder} holds ids, not digits: give no --levels.")
    path = folder / METADATA
    metadata = _read_json(folder, path)
    if (folder / VIDEO).exists():
        return _open_v1(folder, metadata, config)
    if "num_shards" in metadata:
        return _open_v2(folder, metadata, config)
    raise PipelineError(f"{path} is of no layout of 1X: no {VIDEO} beside it, and no num_shards.")


def _open_v1(folder: Path, metadata: dict[str, Any], config: ImportConfig) -> Ids:
    path = folder / METADATA
    count = _count(metadata, "num_images", path)
    sides = ("h", "w") if {"h", "w"} <= metadata.keys() else ("s", "s")
    h, w = (_count(metadata, side, path) for side in sides)
    kind = metadata.get("token_dtype", "uint32")
    if kind not in TYPES:
        raise PipelineError(f"{path}: token_dtype is {kind!r}"[:200] + ", which is no integer.")
    codes = _count(metadata, "vocab_size", path) if "vocab_size" in metadata else None
    if codes and config.codebook_size not in (None, codes):
        raise PipelineError(
            f"{path} says vocab_size {codes}, but --codebook-size is {config.codebook_size}."
        )
    ids = open_raw(within(folder, folder / VIDEO), kind, (count, h, w), str(path))
    states = tuple(_actions(folder, count))
    known = {METADATA, VIDEO, SEGMENTS, ACTIONS}
    others = [p.name for p in contents(folder) if p.name not in known and p.name[0] != "."]
    said = left_out(others, "other files")
    if (folder / SEGMENTS).exists():
        segments = open_raw(within(folder, folder / SEGMENTS), "int32", (count,), str(path))
        numbers = segments.read(0, count)
    else:
        said = (*said, f"no {SEGMENTS}: all frames are taken for one segment")
        numbers = np.zeros(count, np.int32)
    videos = [
        Video(f"segment-{number}@{start}", ids, start, stop - start, states)
        for number, start, stop in _runs(numbers)
    ]
    window = _count(metadata, "t", path) if "t" in metadata else None
    return Ids(
        place=folder,
        videos=videos,
        size=(h, w),
        window=window,
        codebook_size=codes,
        frames=1,
        fps=_rate(metadata, path),
        said=said,
    )


def _actions(folder: Path, count: int) -> Iterator[tuple[str, FileArray]]:
    for path in contents(folder / ACTIONS) if (folder / ACTIONS).is_dir() else ():
        if path.name[0] == ".":
            continue
        if path.suffix != ".bin":
            raise PipelineError(f"{printable(str(path))} is no .bin of float32 for each frame.")
        yield path.stem, _states(within(folder, path), count, str(folder / METADATA))


def _states(path: Path, count: int, said: str) -> FileArray:
    """Opens float32 [count, k], where its size says k."""
    size = path.stat().st_size if path.is_file() else 0
    width = max(1, size // (4 * count))
    if width > MAX_WIDTH:
        raise PipelineError(f"{path} holds {width:,} numbers a frame, more than {MAX_WIDTH:,}.")
    return open_raw(path, "float32", (count, width), said)


def _open_v2(folder: Path, metadata: dict[str, Any], config: ImportConfig) -> Ids:
    path = folder / METADATA
    num_shards = _count(metadata, "num_shards", path)
    if (more := _file(folder, "video", num_shards)).exists():
        raise PipelineError(f"{more} is there, but {path} claims {num_shards} shards.")
    in_use = folder / FOLDERS["states"]
    names = [file.name for file in contents(in_use if in_use.is_dir() else folder)]
    has_states = any(name.startswith("states_") for name in names)
    videos: list[Video] = []
    total = crossing = short = 0
    for shard in range(num_shards):
        about = _file(folder, "metadata", shard)
        if not about.is_file():
            raise PipelineError(
                f"{about} is missing: {path} claims {num_shards} shards. Fetch the rest, or lower "
                "num_shards and num_images there."
            )
        count = _count(_read_json(folder, about), "shard_num_frames", about)
        found, left = _open_shard(folder, shard, count, has_states=has_states)
        videos += found
        total, crossing = total + count, crossing + left
        short += count % CLIP_FRAMES > 0
    if metadata.get("num_images", total) != total:
        claimed = str(metadata["num_images"])[:50]
        raise PipelineError(f"{path} claims num_images {claimed}, but its shards hold {total}.")
    widths = {array.shape[1]: str(array) for video in videos for _, array in video.states}
    if len(widths) > 1:
        raise PipelineError(f"{' and '.join(widths.values())} differ in numbers a frame.")
    if not videos:
        raise PipelineError(f"{folder} holds no clip of {CLIP_FRAMES} frames of one segment.")
    return Ids(
        place=folder,
        videos=videos,
        size=CLIP_GRID[1:],
        unit=CLIP_GRID[0],
        window=CLIP_GRID[0],
        codebook_size=config.codebook_size or COSMOS_CODES,
        frames=CLIP_FRAMES,
        causal=True,
        fps=_rate(metadata, path),
        said=_left_out_clips(crossing, short),
    )


def _open_shard(
    folder: Path, shard: int, count: int, *, has_states: bool
) -> tuple[list[Video], int]:
    """Returns the runs of whole clips of one segment, and how many clips are of several."""
    said = str(_file(folder, "metadata", shard))
    whole = count // CLIP_FRAMES
    shape = (-(-count // CLIP_FRAMES), *CLIP_GRID)
    ids = open_raw(_file(folder, "video", shard), "int32", shape, said)
    segments = open_raw(_file(folder, "segment_idx", shard), "int32", (count,), said)
    states: tuple[tuple[str, FileArray], ...] = ()
    if has_states:
        states = (("states", _states(_file(folder, "states", shard), count, said)),)
    numbers = segments.read(0, whole * CLIP_FRAMES).reshape(whole, CLIP_FRAMES)
    inside = (numbers == numbers[:, :1]).all(1)
    videos = [
        Video(f"video_{shard}/segment-{number}@{start}", ids, start, stop - start, states)
        for number, start, stop in _runs(numbers[:, 0], inside)
    ]
    return videos, int((~inside).sum())


def _left_out_clips(crossing: int, short: int) -> tuple[str, ...]:
    reasons = ((crossing, "of several segments"), (short, "that are not full"))
    return tuple(f"left out clips {which}: {count:,}" for count, which in reasons if count)


def _file(folder: Path, kind: str, shard: int) -> Path:
    """Returns where a file of a shard is: in a folder of its kind, if there is one."""
    inside = folder / FOLDERS[kind]
    ending = ".json" if kind == "metadata" else ".bin"
    return within(folder, (inside if inside.is_dir() else folder) / f"{kind}_{shard}{ending}")


def _runs(
    numbers: NDArray[np.integer[Any]], usable: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yields number, start and stop of each run of equal numbers, but for what is not usable."""
    ends = numbers[1:] != numbers[:-1]
    if usable is not None:
        ends |= usable[1:] != usable[:-1]
    edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(numbers)] if len(numbers) else []
    for start, stop in pairwise(edges):
        if usable is None or usable[start]:
            yield int(numbers[start]), start, stop


def _read_json(folder: Path, path: Path) -> dict[str, Any]:
    if not within(folder, path).is_file():
        raise PipelineError(f"{path} is missing.")
    if path.stat().st_size > MAX_METADATA:
        raise PipelineError(f"{path} is too long for what it is to say.")
    return parse_json(path.read_bytes(), path, PipelineError, "layout of 1X")


def _count(metadata: dict[str, Any], key: str, path: Path) -> int:
    value = metadata.get(key)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise PipelineError(f"{path}: {key} must be a count, but is {value!r}"[:300] + ".")
    return value


def _rate(metadata: dict[str, Any], path: Path) -> float | None:
    hz = metadata.get("hz")
    if hz is None:
        return None
    if type(hz) not in (int, float) or not 0 < hz < MAX_FPS:
        raise PipelineError(f"{path}: hz must be frames a second, but is {hz!r}"[:300] + ".")
    return float(hz)
