"""The frames that `extract.fps` keeps, whatever the container makes of time."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipeline.video.footage import About
from pipeline.video.reader import read_video
from tests.helpers.film import number_of, picture, write_film

COUNT = 48
KINDS = {
    "mp4": ("v.mp4", "libx264", None),
    "mov": ("v.mov", "mjpeg", None),
    "mkv": ("v.mkv", "ffv1", None),
    "webm": ("v.webm", "libvpx", None),
    "avi": ("v.avi", "mpeg4", None),
    "avi with B-frames": ("v.avi", "libx264", None),
    "transport stream": ("v.ts", "mpeg2video", "mpegts"),
    "programme stream": ("v.mpg", "mpeg2video", "vob"),
    "no times": ("v.mpg", "libx264", "h264"),
    "flv": ("v.flv", "flv", None),
    "y4m": ("v.y4m", "wrapped_avframe", "yuv4mpegpipe"),
}
RATES = {"30": 30, "25": 25, "23.976": Fraction(24000, 1001)}


def film(folder: Path, kind: str, rate: Fraction | int, count: int = COUNT) -> Path:
    name, codec, format = KINDS[kind]
    pixels = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    frames = (picture(number) for number in range(count))
    write_film(folder / name, frames, codec, rate=rate, pixels=pixels, format=format)
    return folder / name


def of_ffmpeg(path: Path, fps: float) -> int:
    """Counts the frames that FFmpeg's own filter makes of a film whose times are good."""
    graph = av.filter.Graph()
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        chain = graph.add_buffer(template=stream), graph.add("fps", f"fps={fps}")
        graph.link_nodes(*chain, graph.add("buffersink")).configure()
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            try:
                while graph.vpull():
                    count += 1
            except (BlockingIOError, EOFError):
                pass
    return count


@pytest.mark.slow
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_container_gives_as_many_frames_as_it_should_and_evenly(
    tmp_path: Path, kind: str, rate: Fraction
) -> None:
    path = film(tmp_path, kind, rate)
    trusted = kind in ("mp4", "mov", "mkv", "webm", "transport stream")
    for fps in (24, 10):
        about = About()
        found = [number_of(pixels) for pixels in read_video(path, fps=fps, about=about)]
        kept = min(fps, float(rate))
        assert abs(len(found) - COUNT / float(rate) * kept) < 1.01
        assert about.rate == pytest.approx(kept)
        if trusted and fps < rate:
            assert abs(len(found) - of_ffmpeg(path, fps)) <= 1
        for due, number in enumerate(found):  # The nearest.
            assert abs(number - due * float(rate) / kept) <= 0.5 + 1e-4
    about = About()
    assert [number_of(pixels) for pixels in read_video(path, about=about)] == list(range(COUNT))
    assert about.rate == pytest.approx(float(rate), rel=1e-3)
    assert "variable rate" not in about.notes
    assert ("times missing" in about.notes) == (kind in ("no times", "avi with B-frames"))


@pytest.mark.parametrize("kind", ["transport stream", "programme stream"])
def test_joined_files_are_read_to_the_end(tmp_path: Path, kind: str) -> None:
    path = film(tmp_path, kind, 25)
    path.write_bytes(path.read_bytes() * 3)
    about = About()
    found = [number_of(pixels) for pixels in read_video(path, fps=12.5, about=about)]
    assert abs(len(found) - 3 * COUNT / 2) <= 1
    assert len(set(found[:20]) & set(found[-20:])) > 15  # The same again.
    assert "has 2 times of 144 frames that started again" in about.notes["times started again"]


def test_a_variable_rate_is_said_with_its_spread_and_evened_out(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    shown = [*range(0, 400, 40), *range(400, 1400, 100)]  # Milliseconds.
    write_film(
        path,
        (picture(number) for number in range(20)),
        "ffv1",
        times=shown.__getitem__,
        clock=Fraction(1, 1000),
    )
    about = About()
    assert len(list(read_video(path, about=about))) == 20
    assert "40 to 100 ms from frame to frame" in about.notes["variable rate"]
    about = About()
    found = [number_of(pixels) for pixels in read_video(path, fps=10, about=about)]
    assert found == [0, 2, 5, 7, *range(10, 19)]
    assert "variable rate" not in about.notes
    assert about.rate == 10
    assert abs(len(found) - of_ffmpeg(path, 10)) <= 1


@pytest.mark.parametrize(("movflags", "said"), [("", False), ("frag_keyframe+empty_moov", True)])
def test_a_length_that_cannot_be_checked_is_said(tmp_path: Path, movflags: str, said: bool) -> None:
    path = tmp_path / "v.mp4"
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        container.mux(stream.encode())
    about = About()
    assert len(list(read_video(path, about=about))) == 8
    assert ("length" in about.notes) == said


def test_a_live_webm_that_does_not_say_its_length_is_named(tmp_path: Path) -> None:
    class Pipe:
        """A file that cannot be wound back, such as a browser's recorder writes."""

        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

    pipe = Pipe()
    write_film(pipe, (picture(n) for n in range(8)), "libvpx", format="webm")  # type: ignore[arg-type]
    (tmp_path / "v.webm").write_bytes(pipe.data)
    about = About()
    assert len(list(read_video(tmp_path / "v.webm", about=about))) == 8
    assert "whether it was cut off could not be checked" in about.notes["length"]
