"""Pixels: ranges, rounding, videos that come back, seeded synthetic ones."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, FrameError
from pipeline.footage import ASF_BROADCAST, ASF_PROPERTIES
from pipeline.reader import check_filters, read_video
from pipeline.video import (
    ExtractConfig,
    motion,
    moving_shapes,
    published_bytes,
    tiles,
    to_bytes,
    to_model,
)
from pipeline.writer import write_mp4, write_sheet


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


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (2, 2)])
def test_a_video_comes_back(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    frames = np.full((5, height, width, 3), 90, np.uint8)
    frames += np.arange(5, dtype=np.uint8)[:, None, None, None] * 20
    write_mp4(tmp_path / "v.mp4", frames, fps=5)
    back = np.stack(list(read_video(tmp_path / "v.mp4")))[:, :height, :width]
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).max() < 6


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


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"RIFF....AVI "])
def test_no_video_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "v.avi").write_bytes(data)
    with pytest.raises(FrameError, match=r"v\.avi cannot be decoded"):
        list(read_video(tmp_path / "v.avi"))


def encode(path: Path, codec: str, time: Callable[[int], int] | None = None) -> Path:
    """Writes 100 frames of noise at 25 frames per second; `time` says when each is shown."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), np.uint8)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, pixels in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            if time:
                frame.pts, frame.time_base = time(number), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("v.avi", "mjpeg"), ("v.avi", "mpeg4"), ("v.mkv", "libx264"), ("v.mp4", "libx264")),
        *(("v.wmv", "wmv2"), ("v.asf", "libx264")),
    ],
)
def test_half_a_video_is_refused_and_a_whole_one_is_not(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = encode(tmp_path / name, codec)
    assert len(list(read_video(path))) == 100
    assert len(list(read_video(path, fps=5))) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for fps in (None, 5):
        with pytest.raises(FrameError, match=r"breaks off after|is damaged|cannot be decoded"):
            list(read_video(path, fps=fps))


def test_where_a_video_breaks_off_is_said(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.avi", "mjpeg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FrameError, match=r"v\.avi breaks off after [45]\d of about 10\d frames"):
        list(read_video(path))


def test_a_windows_video_is_as_long_as_its_header_says(tmp_path: Path) -> None:
    """FFmpeg forgets how long one should be that is cut off; its own header does not."""
    path = encode(tmp_path / "v.wmv", "wmv2")
    data = bytearray(path.read_bytes())
    start = data.index(ASF_PROPERTIES)
    struct.pack_into("<Q", data, start + 64, int((8 + 3.1) * 1e7))  # 3.1 s go by before it plays.
    path.write_bytes(data)
    with pytest.raises(FrameError, match=r"v\.wmv breaks off after 100 of about 200 frames"):
        list(read_video(path))
    data[start + 88] |= ASF_BROADCAST  # A recorded stream: the length means nothing.
    path.write_bytes(data)
    assert len(list(read_video(path))) == 100


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.avi", "mpeg4"), ("v.mkv", "libx264"), ("v.mp4", "libx264"), ("v.wmv", "wmv2")],
)
def test_a_video_of_changing_frame_rate_is_whole(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, codec, lambda number: number + 200 * (number > 50))
    assert len(list(read_video(path))) == 100


def test_an_animation_is_whole(tmp_path: Path) -> None:
    frames = np.stack(list(moving_shapes(8, 32, seed=0)))
    write_sheet(tmp_path / "v.gif", [frames], columns=1, fps=8)
    assert len(list(read_video(tmp_path / "v.gif"))) == 8


def test_a_flickering_lamp_is_levelled_out(tmp_path: Path) -> None:
    lamp = 100 + 10 * (-1) ** np.arange(24)
    frames = np.broadcast_to(lamp[:, None, None, None], (24, 16, 16, 3)).astype(np.uint8).copy()
    frames[:, 4:8, 4:8] //= 2
    write_mp4(tmp_path / "v.mp4", frames, fps=5)
    found = np.stack(list(read_video(tmp_path / "v.mp4", filters=["deflicker=size=10"])))
    assert len(found) == len(frames)
    assert np.ptp(frames[:, 12, 12, 0].astype(int)) == 20
    assert np.ptp(found[:14, 12, 12, 0].astype(int)) <= 2
    assert found[:, 6, 6].max() < found[:, 12, 12].min() - 30  # What the picture shows stays.


def test_filters_follow_one_another_and_keep_the_frame_rate_that_is_asked_for(
    tmp_path: Path,
) -> None:
    path = encode(tmp_path / "v.mp4", "mpeg4")
    plain = list(read_video(path, fps=5))
    found = list(read_video(path, fps=5, filters=["hflip", "pad=iw+8", "deflicker"]))
    assert len(found) == len(plain)
    assert found[0].shape == (plain[0].shape[0], plain[0].shape[1] + 8, 3)


@pytest.mark.parametrize("filters", [["nonesuch"], ["deflicker=size=1"], ["hflip=a=b"], [""]])
def test_what_ffmpeg_cannot_use_is_one_clear_line(filters: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"extract\.filters: FFmpeg cannot use .*\.$"):
        check_filters(filters)


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
