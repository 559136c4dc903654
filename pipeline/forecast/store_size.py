"""How many bytes a token store will have: real tokens of a few of its chunks, compressed."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from pipeline.frame_list import SOURCE_SCHEMA
from pipeline.frames.given import Frames
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import Video
from pipeline.size import Size, sides
from pipeline.storage.files import to_json
from pipeline.storage.sealed import to_parquet
from pipeline.store.layout import PART_SCHEMA, StoreInfo, hash_plan, store_record
from pipeline.store.shards import array_header, encode_shard, index_bytes

SAMPLED, CHUNKS = 256, 4
"""Windows, and chunks of them, of which at least so many are encoded to see how they compress."""
FRAME_BYTES = 0.5
"""Bytes of an image that is not there yet for each of its numbers: PNGs of films have a third to
two thirds. Only the list of their sizes depends on it, and hardly."""


def sampled_rows(info: StoreInfo) -> list[tuple[str, range]]:
    """Returns rows of a store whose tokens are to stand for all: whole chunks, evenly spread."""
    chunks = [
        (split, range(start, min(start + info.chunk_windows, count)))
        for split, count in info.counts.items()
        for start in range(0, count, info.chunk_windows)
    ]
    wanted = max(CHUNKS, -(-SAMPLED // info.chunk_windows))
    places = np.linspace(0, len(chunks) - 1, min(wanted, len(chunks))).round().astype(int)
    return [chunks[place] for place in np.unique(places)]


def bytes_of_tokens(
    info: StoreInfo, chunks: Sequence[tuple[str, Int[np.ndarray, "n t h w"]]]
) -> int:
    """Returns about how many bytes the shards have, from the tokens of some chunks by split.

    A split of which there is no chunk is taken to be like the others.
    """
    sizes: dict[str, list[tuple[int, int]]] = {}
    for split, tokens in chunks:
        sizes.setdefault(split, []).append((_compressed(info, tokens), len(tokens)))
    every = [size for found in sizes.values() for size in found]
    total = 0.0
    for split, count in info.counts.items():
        found = sizes.get(split, every)
        total += count * sum(size for size, _ in found) / sum(number for _, number in found)
        total += info.num_shards(split) * index_bytes(info)
    return round(total)


def most_bytes_of_tokens(info: StoreInfo) -> int:
    """Returns how many bytes shards have at most: those of tokens that were drawn at random."""
    most = max(info.counts.values())
    draw = np.random.default_rng(0)
    shape = (min(info.chunk_windows, most), *info.grid)
    tokens = draw.integers(info.codebook_size, size=shape, dtype=np.int64)
    return bytes_of_tokens(info, [(split, tokens) for split in info.counts])


def _compressed(info: StoreInfo, tokens: Int[np.ndarray, "n t h w"]) -> int:
    chunks = -(-len(tokens) // info.chunk_windows)
    one = replace(info, counts={"sample": len(tokens)}, shard_windows=chunks * info.chunk_windows)
    return len(encode_shard(one, "sample", 0, tokens)) - index_bytes(one)


def bytes_beside_tokens(info: StoreInfo, plan: pa.Table, frames: pa.Table) -> int:
    """Returns the bytes of a store's other files: record, plan, list of frames, manifest."""
    record = {**store_record(info, hash_plan(plan)), "frames": len(frames)}
    parts = 0
    for split in info.counts:
        about = {"split": split, "shard": 0, "rows": 1, "bytes": 1, "crc32": 1}
        seals = {key: hashlib.sha256(key.encode()).hexdigest() for key in ("sha256", "fingerprint")}
        part = pa.Table.from_pylist([about | seals], schema=PART_SCHEMA)
        parts += info.num_shards(split) * len(to_parquet(part))
    headers = sum(len(array_header(info, split)) for split in info.counts)
    return len(to_json(record)) + len(to_parquet(plan)) + len(to_parquet(frames)) + parts + headers


def frame_table(videos: Sequence[Video], root: Frames | None, *, size: Size) -> pa.Table:
    """Lists frames as a store does; of frames that are nowhere yet sizes are drawn at random."""
    if root is not None:
        return list_frames(videos, root)
    draw = np.random.default_rng(0)
    usual = FRAME_BYTES * 3 * math.prod(sides(size))
    rows = []
    for video in videos:
        sizes = draw.integers(int(0.9 * usual), int(1.1 * usual) + 1, size=len(video.frames))
        rows += [
            {"split": video.split, "video": video.name, "frame": Path(str(f)).name, "bytes": b}
            for f, b in zip(video.frames, sizes.tolist(), strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)


def bits_of_token(info: StoreInfo, num_bytes: int) -> float:
    """Returns how many bits a token takes in so many bytes."""
    tokens = sum(info.counts.values()) * math.prod(info.grid)
    return 8 * num_bytes / tokens


def raw_gb(counts: Mapping[str, int], info: StoreInfo) -> float:
    """Returns the memory in GB that all tokens of the train split take."""
    windows = counts.get("train", 0)
    return windows * math.prod(info.grid) * info.dtype.itemsize / 2**30
