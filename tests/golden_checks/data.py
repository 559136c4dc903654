"""Which frames make a video, how they are cropped, and how bytes are rounded."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.frames.images import read_frames
from pipeline.frames.scan import group_frames
from pipeline.pixels import to_bytes, to_model
from tests.golden_checks.recipe import load_case

Frame = tuple[str, str, int]


def parse(path: str) -> Frame:
    folder, _, name = path.rpartition("/")
    video, _, number = name.partition(".")[0].rpartition("_")
    return folder, video, int(number)


def corrected(groups: list[list[str]]) -> set[tuple[Frame, ...]]:
    """The published groups (the last one kept) without three faults of the published grouping.

    Videos whose joined folder and name happen to agree are kept apart, numbers without leading
    zeros are followed in their own order, and a file that is no image leaves a gap.
    """
    by_video: dict[tuple[str, str], list[Frame]] = {}
    for frame in map(parse, itertools.chain.from_iterable(groups)):
        by_video.setdefault(frame[:2], []).append(frame)
    return {run for frames in by_video.values() for run in runs(sorted(frames))}


def runs(frames: list[Frame]) -> Iterator[tuple[Frame, ...]]:
    """Cuts frames where a number is missing."""
    for _, run in itertools.groupby(enumerate(frames), lambda item: item[1][2] - item[0]):
        yield tuple(frame for _, frame in run)


def check_data(case: Path) -> None:
    meta, io = load_case(case)
    for name, grouping in meta["grouping"].items():
        paths = [Path(path) for path in grouping["paths"]]
        videos, rejected = group_frames(paths, split="train", root=Path("/"))
        found = {tuple(map(parse, video.frames)) for video in videos}
        assert sum(len(video.frames) for video in videos) + len(rejected) == len(paths), name
        results = grouping["results"]
        every = next(r["with_final_flush"] for r in results if r["sequence_length"] == -1)
        assert found == corrected(every), name
        if found != {tuple(map(parse, group)) for group in every}:
            continue  # The published groups of this case are faulty.
        for result in results:
            span = result["sequence_length"] * result["sample_every_n_frames"]
            groups = {tuple(map(parse, group)) for group in result["with_final_flush"]}
            assert {frames for frames in found if len(frames) >= span} == groups, name
    for path in filter(None, meta["error_inputs"]):
        videos, rejected = group_frames([Path(path)], split="train", root=Path("/"))
        assert not videos and rejected[0].name == path  # Published: a crash.
    for crop in meta["crops"]:
        key = f"crop{crop['case']}"
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number, frame in enumerate(io[f"{key}.frames"].numpy()):
                paths.append(f"{folder}/{number}.png")
                Image.fromarray(frame).save(paths[-1])
            frames = read_frames(paths, size=crop["resolution"])
        expected = io[f"{key}.video_u8"].movedim(0, -1).numpy()
        np.testing.assert_array_equal(frames, expected)
        assert torch.equal(to_model(frames), io[f"{key}.video"])
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(to_bytes(to_model(levels)), levels)  # Published: 63 change.
    truncated = ((to_model(levels)[0].flatten() + 0.5) * 255).byte()
    changed = torch.nonzero(truncated != torch.arange(256)).flatten().tolist()
    assert changed == meta["fvd_byte_truncation"]["levels"]


CHECKS = {"data": check_data}
