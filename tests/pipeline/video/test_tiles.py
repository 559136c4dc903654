"""Pixels: ranges and rounding; tiles, motion, videos for eyes, seeded synthetic ones."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.pixels import published_bytes, to_bytes, to_model
from pipeline.video.synthetic import moving_shapes
from pipeline.video.tiles import ExtractConfig, motion, tiles
from pipeline.video.writer import write_mp4, write_sheet


def test_every_grey_level_survives() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    video = to_model(frames)
    assert video.shape == (3, 1, 16, 16)
    assert (float(video.min()), float(video.max())) == (-0.5, 0.5)
    np.testing.assert_array_equal(to_bytes(video), frames)


def test_values_out_of_range_are_clamped_and_the_rest_rounded() -> None:
    video = torch.tensor([-9.0, -0.5, 1.6 / 255 - 0.5, 0.5, 9.0]).reshape(1, 5, 1, 1)
    assert to_bytes(video.expand(3, -1, -1, -1))[:, 0, 0, 0].tolist() == [0, 0, 2, 255, 255]


def test_published_rounding_lowers_63_of_256_levels_by_one() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    lowered = levels.astype(int) - published_bytes(levels)
    assert set(lowered.flatten().tolist()) == {0, 1}
    assert lowered[..., 0].sum() == 63


def test_truncation_drops_the_fraction() -> None:
    video = torch.tensor([-9.0, 1.6 / 255 - 0.5, 9.0]).reshape(1, 3, 1, 1).expand(3, -1, -1, -1)
    assert to_bytes(video, truncate=True)[:, 0, 0, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(0.1, "1/10"), (7.5, "15/2"), (29.97, "2997/100"), (30000 / 1001, "30000/1001")],
)
def test_a_video_plays_at_its_very_rate(tmp_path: Path, fps: float, exact: str) -> None:
    write_mp4(tmp_path / "v.mp4", np.zeros((6, 8, 8, 3), np.uint8), fps=fps)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(exact)
        assert float(stream.duration * stream.time_base) == pytest.approx(6 / fps)


def test_no_half_video_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array"):
        write_mp4(tmp_path / "v.mp4", np.zeros((2, 8, 8, 1), np.uint8), fps=5)
    assert not list(tmp_path.iterdir())


def test_tiles_stay_inside_and_touch() -> None:
    config = ExtractConfig(size=8, tile=10)
    boxes = tiles(35, 20, config)
    assert boxes == {f"-x{x}-y{y}": (x, y, x + 10, y + 10) for y in (0, 10) for x in (0, 10, 20)}
    assert tiles(9, 20, config) == {}
    assert tiles(30, 20, ExtractConfig(size=8)) == {"": (5, 0, 25, 20)}


def test_what_moves() -> None:
    frames = np.full((3, 4, 4, 3), 100, np.uint8)
    frames[1, 2, 3] = 200
    assert np.argwhere(motion(frames)).tolist() == [[2, 3]]


def test_shapes_are_seeded_and_move() -> None:
    one, same, other = (np.stack(list(moving_shapes(8, 32, seed=seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert motion(one).mean() > 0.02


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_a_sheet_shows_every_video(tmp_path: Path, kind: str) -> None:
    videos = [np.full((6, 10, 12, 3), 40 * n, np.uint8) for n in range(5)]
    for number, video in enumerate(videos):
        video[:, 0, 0] = np.arange(6, dtype=np.uint8)[:, None] * 30  # No two frames are equal.
        video[:, 5:8, 2:9] = 40 * number
    path = tmp_path / f"sheet.{kind}"
    write_sheet(path, videos, columns=3, fps=8)
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 14, 2 * 12)
        pixels = np.asarray(sheet.convert("RGB"))
    for number in range(5):
        row, column = divmod(number, 3)
        assert abs(int(pixels[row * 12 + 7, column * 14 + 6, 0]) - 40 * number) < 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"fps": -1.0}, "fps must be"),
        ({"fps": math.nan}, "fps must be"),
        ({"seed": -1}, "seed must be"),
        ({"test_share": 1.0}, "test_share"),
        ({"min_motion": 0.1}, "min_motion needs clip_frames"),
        ({"tile_hop": 8}, "tile_hop needs tile"),
    ],
)
def test_impossible_values_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExtractConfig(**fields)
