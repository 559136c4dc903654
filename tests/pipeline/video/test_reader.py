"""Videos of any kind: every frame, upright, true in colour, at an even pace; or refused."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import ConfigError, FrameError
from pipeline.video.filters import check_filters
from pipeline.video.footage import ASF_BROADCAST, ASF_PROPERTIES
from pipeline.video.reader import read_video
from pipeline.video.synthetic import moving_shapes
from pipeline.video.writer import write_mp4, write_sheet


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (2, 2)])
def test_a_video_comes_back(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    frames = np.full((5, height, width, 3), 90, np.uint8)
    frames += np.arange(5, dtype=np.uint8)[:, None, None, None] * 20
    write_mp4(tmp_path / "v.mp4", frames, fps=5)
    back = np.stack(list(read_video(tmp_path / "v.mp4")))[:, :height, :width]
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).max() < 6


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


@pytest.mark.slow
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
    # How large frames are depends on the cores that an encoder finds.
    said = r"v\.avi breaks off after [45]\d of about (9|10)\d frames"
    with pytest.raises(FrameError, match=said):
        list(read_video(path))


@pytest.mark.parametrize("left", [10, 43, 300])
def test_half_a_picture_at_the_end_is_where_a_video_breaks_off(tmp_path: Path, left: int) -> None:
    path = encode(tmp_path / "v.avi", "mjpeg")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    path.write_bytes(path.read_bytes()[: places[50] + 8 + left])  # 8: what begins a chunk of AVI.
    with pytest.raises(FrameError, match=r"v\.avi breaks off after 5[01] of about (9|10)\d frames"):
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
