"""Ids in the forms in which other programs write them, tiny; made from what those forms say."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Ids = NDArray[np.integer[Any]]
V2_GRID = (3, 32, 32)
"""Ids of a clip in 1X's v2.0, whatever else is small."""


def draw_ids(*shape: int, codes: int = 24, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, codes, shape)


def write_folder(folder: Path, videos: Mapping[str, Ids]) -> Path:
    """Writes a file for each video, of the kind that its name says."""
    for name, ids in videos.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, ids)
        else:
            save_file({"ids": np.ascontiguousarray(ids)}, path)
    return folder


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes a tar with owners and times, as tar itself does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uname = len(data), 1_700_000_000, "somebody"
            tar.addfile(entry, io.BytesIO(data))
    return path


def write_v1(
    folder: Path, segments: Sequence[Ids], *, states: bool = True, **metadata: Any
) -> Path:
    """Writes 1X's v1.1: segments [T, h, w] one after the other, numbered from 7 on."""
    folder.mkdir(parents=True)
    frames = np.concatenate(segments)
    frames.astype("<u4").tofile(folder / "video.bin")
    lengths = [len(segment) for segment in segments]
    np.repeat(np.arange(7, 7 + len(segments), dtype="<i4"), lengths).tofile(
        folder / "segment_ids.bin"
    )
    if states:
        (folder / "actions").mkdir()
        for name, width in (("joint_pos", 21), ("neck_desired", 1)):
            numbered(len(frames), width).tofile(folder / "actions" / f"{name}.bin")
    side = frames.shape[1]
    about = {"token_dtype": "uint32", "s": side, "h": side, "w": frames.shape[2], "hz": 30}
    about |= {"vocab_size": 24, "tokenizer_ckpt": "x.ckpt", "num_images": len(frames), **metadata}
    (folder / "metadata.json").write_text(json.dumps(about))
    return folder


def numbered(frames: int, width: int) -> NDArray[np.float32]:
    """States that say where they are from: frame + column / 100."""
    return (np.arange(frames)[:, None] + np.arange(width) / 100).astype("<f4")


def write_v2(
    folder: Path, shards: Sequence[Sequence[int]], *, flat: bool = True, codes: int = 64_000
) -> list[Ids]:
    """Writes 1X's v2.0; a shard is given by the frames of its segments. Returns their clips."""
    written = []
    for shard, segments in enumerate(shards):
        frames = sum(segments)
        clips = draw_ids(-(-frames // 17), *V2_GRID, codes=codes, seed=shard).astype("<i4")
        files = {
            f"videos/video_{shard}.bin": clips,
            f"segment_indices/segment_idx_{shard}.bin": np.repeat(
                np.arange(len(segments), dtype="<i4"), segments
            ),
            f"robot_states/states_{shard}.bin": numbered(frames, 25),
            f"metadata/metadata_{shard}.json": {"shard_ind": shard, "shard_num_frames": frames},
        }
        for name, content in files.items():
            path = folder / (Path(name).name if flat else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                path.write_text(json.dumps(content))
            else:
                content.tofile(path)
        written.append(clips)
    about = {"num_shards": len(shards), "query": "x", "hz": 30, "num_images": sum(map(sum, shards))}
    (folder / "metadata.json").write_text(json.dumps(about))
    return written
