"""Videos as players show them: upright, in square pixels, in true colours, the right stream."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from time import sleep

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import FrameError
from pipeline.video.footage import About, open_video
from pipeline.video.reader import read_video
from tests.helpers.film import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    clap_box,
    corners,
    number_of,
    picture,
    with_box,
    with_first_box,
    write_film,
)

Prepare = Callable[[av.VideoStream], None]
TURNS = {  # What the file says -> the stored corners in the order in which they are shown.
    "a quarter to the left": ((0, -1, 1, 0), (1, 3, 0, 2)),
    "a quarter to the right": ((0, 1, -1, 0), (2, 0, 3, 1)),
    "half": ((-1, 0, 0, -1), (3, 2, 1, 0)),
    "mirrored": ((-1, 0, 0, 1), (1, 0, 3, 2)),
    "upside down": ((1, 0, 0, -1), (2, 3, 0, 1)),
    "transposed": ((0, 1, 1, 0), (0, 2, 1, 3)),
    "transposed the other way": ((0, -1, -1, 0), (3, 1, 2, 0)),
}
STORED = np.array([RED, GREEN, BLUE, WHITE])


def film(path: Path, prepare: Prepare = lambda stream: None, codec: str = "libx264") -> Path:
    write_film(path, [picture(n) for n in range(4)], codec, prepare=prepare, options={"crf": "10"})
    return path


def matrix(a: int, b: int, c: int, d: int) -> list[int]:
    one = 1 << 16
    return [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize(("says", "order"), TURNS.values(), ids=TURNS)
def test_a_video_is_turned_as_its_file_says(
    tmp_path: Path, says: tuple[int, int, int, int], order: tuple[int, ...]
) -> None:
    path = film(tmp_path / "v.mp4", lambda stream: stream.set_display_matrix(matrix(*says)))
    about = About()
    (first, *_) = read_video(path, about=about)
    turned = says[0] == 0
    assert first.shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
    assert np.abs(corners(first) - STORED[list(order)]).max() < 16
    assert "as the file says" in about.notes["turned"]
    (stored, *_) = read_video(path, as_stored=True)
    assert np.abs(corners(stored) - STORED).max() < 16


def test_an_odd_angle_is_said_and_left(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", lambda stream: stream.set_display_rotation(30))
    about = About()
    (first, *_) = read_video(path, about=about)
    assert np.abs(corners(first) - STORED).max() < 16
    assert "odd angle" in about.notes["turned"]


@pytest.mark.parametrize(
    ("aspect", "width", "said"),
    [
        (Fraction(16, 15), 102, "stretched 1.067 times"),
        (Fraction(8, 9), 85, "stretched 0.8889 times"),
        (Fraction(64, 45), 137, "stretched 1.422 times"),
        (Fraction(1, 1), 96, None),
        (Fraction(1, 20), 96, "0.05 times as wide as high: ignored"),
    ],
)
def test_pixels_become_square(
    tmp_path: Path, aspect: Fraction, width: int, said: str | None
) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    path = film(tmp_path / "v.mp4", prepare)
    about = About()
    (first, *_) = read_video(path, about=about)
    assert first.shape == (HEIGHT, width, 3)
    assert np.abs(corners(first) - STORED).max() < 16
    assert (said in about.notes["aspect"]) if said else ("aspect" not in about.notes)
    assert next(iter(read_video(path, as_stored=True))).shape == (HEIGHT, WIDTH, 3)


def test_what_the_container_cuts_off_is_not_shown(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4")
    entry = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"]
    path.write_bytes(with_box(path.read_bytes(), entry, clap_box(64, 32, 8, -4)))
    about = About()
    (whole, *_), (cut, *_) = read_video(path, as_stored=True), read_video(path, about=about)
    left, top = (WIDTH - 64) // 2 + 8, (HEIGHT - 32) // 2 - 4
    np.testing.assert_allclose(cut.astype(int), whole[top : top + 32, left : left + 64], atol=2)
    assert "cropped to 64x32" in about.notes["cropped"]


def test_what_is_cut_off_is_found_whatever_other_threads_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "v.mp4")
    entry = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"]
    path.write_bytes(with_box(path.read_bytes(), entry, clap_box(64, 32, 8, -4)))

    set_level = av.logging.set_level

    def slowly(level: int | None) -> None:
        set_level(level)
        sleep(0.01)  # Another thread has its turn.

    monkeypatch.setattr("av.logging.set_level", slowly)

    def look(_: int) -> object:
        with open_video(path) as footage:
            return footage.cropping()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(look, range(16))) == {(24, 8, 12, 20)}
    assert av.logging.get_level() is None


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("v.mov", "qtrle", "argb"),
        ("v.mkv", "ffv1", "yuva444p"),
        ("v.webm", "libvpx", "yuva420p"),
        ("v.webm", "libvpx-vp9", "yuva420p"),
        ("v.apng", "apng", "rgba"),
    ],
)
def test_what_is_transparent_is_shown_over_black(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    frame = np.full((32, 48, 4), 200, np.uint8)
    frame[:, :16, 3], frame[:, 16:32, 3], frame[:, 32:, 3] = 255, 128, 0
    options = {"auto-alt-ref": "0"} if codec.startswith("libvpx") else {}
    write_film(tmp_path / name, [frame] * 3, codec, pixels=pixels, source="rgba", options=options)
    about = About()
    found = list(read_video(tmp_path / name, about=about))
    assert len(found) == 3
    shown = [int(found[0][16, x, 1]) for x in (7, 23, 40)]
    assert shown == pytest.approx([200, 100, 0], abs=3)
    assert "over black" in about.notes["transparent"]


def test_what_could_be_transparent_but_is_not_is_unchanged(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    frame[..., 3] = 255
    write_film(tmp_path / "v.mov", [frame], "qtrle", pixels="argb", source="rgba")
    about = About()
    (found,) = read_video(tmp_path / "v.mov", about=about)
    np.testing.assert_array_equal(found, frame[..., :3])
    assert "transparent" not in about.notes


def pq(nits: float) -> float:
    """Returns the code of a luminance, 0 … 1 (SMPTE ST 2084)."""
    part = (nits / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * part) / (1 + 18.6875 * part)) ** 78.84375)


@pytest.mark.slow  # FFmpeg takes seconds to begin.
@pytest.mark.parametrize(
    ("transfer", "said"), [(16, "HDR (PQ)"), (18, "HDR (HLG)"), (1, "BT.2020")]
)
def test_hdr_is_mapped_and_said(tmp_path: Path, transfer: int, said: str) -> None:
    greys = [64 + round(876 * pq(nits)) for nits in (1, 50, 203, 1000)]
    luma = np.repeat(np.array(greys, np.uint16), 16)[None].repeat(32, 0)
    planes = np.concatenate([luma.ravel(), np.full(2 * 16 * 32, 512, np.uint16)])

    def prepare(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9
        context.color_range = 1

    write_film(
        tmp_path / "v.mkv",
        [planes.reshape(48, 64)] * 2,
        "ffv1",
        pixels="yuv420p10le",
        source="yuv420p10le",
        prepare=prepare,
    )
    about = About()
    (first, *_) = read_video(tmp_path / "v.mkv", about=about)
    shown = first[16, 8::16].astype(int)
    assert (np.ptp(shown, axis=1) <= 2).all()  # Grey stays grey.
    assert (np.diff(shown[:, 1]) > 10).all()
    assert said in about.notes["colours"]
    if transfer == 16:  # A dark room is dark, and the sun has room above white paper.
        assert shown[0, 1] < 40
        assert 140 < shown[2, 1] < shown[3, 1] < 240


def two_streams(path: Path, *, cover: bool) -> None:
    """Writes a film behind a smaller one, or behind a cover."""
    with av.open(str(path), "w") as container:
        side = container.add_stream("mjpeg" if cover else "mpeg4", rate=25)
        side.width, side.height = 32, 32
        side.pix_fmt = "yuvj420p" if cover else "yuv420p"
        if cover:
            side.disposition = av.stream.Disposition.attached_pic
        main = container.add_stream("libx264", rate=25)
        main.width, main.height, main.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        blank = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), "rgb24")
        for number in range(12):
            if not (cover and number):
                container.mux(side.encode(blank.reformat(format=side.pix_fmt)))
            container.mux(main.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        container.mux(side.encode())
        container.mux(main.encode())
    if cover:  # As tagging programs do: what holds the cover comes before the film.
        path.write_bytes(with_first_box(path.read_bytes(), b"moov", b"udta"))


@pytest.mark.parametrize("cover", [True, False])
def test_the_film_is_shown_and_a_choice_is_said(tmp_path: Path, cover: bool) -> None:
    path = tmp_path / ("v.mp4" if cover else "v.avi")
    two_streams(path, cover=cover)
    with av.open(str(path)) as container:
        assert [stream.width for stream in container.streams.video] == [32, WIDTH]
    about = About()
    found = list(read_video(path, about=about))
    assert len(found) == 12
    assert found[0].shape == (HEIGHT, WIDTH, 3)
    assert about.notes.get("streams") == (None if cover else "shows stream 1, the best of 2 videos")


def test_sound_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        quiet.rate = 8000
        container.mux(sound.encode(quiet))
        container.mux(sound.encode())
        blank = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), "rgb24")
        container.mux(cover.encode(blank.reformat(format="yuvj420p")))
        container.mux(cover.encode())
    with pytest.raises(FrameError, match=r"song\.m4a holds a cover picture, but no video"):
        list(read_video(path))


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "v.png")
    with pytest.raises(FrameError, match=r"v\.png is an image"):
        list(read_video(tmp_path / "v.png"))


def test_jpegs_one_after_another_are_a_video(tmp_path: Path) -> None:
    for number in range(5):
        Image.fromarray(picture(number)).save(tmp_path / "one.jpg", quality=95)
        with (tmp_path / "camera.mjpeg").open("ab") as file:
            file.write((tmp_path / "one.jpg").read_bytes())
    found = read_video(tmp_path / "camera.mjpeg")
    assert [number_of(pixels) for pixels in found] == list(range(5))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile other.mp4\n",
    ],
)
def test_lists_that_lead_to_other_files_are_no_videos(tmp_path: Path, text: str) -> None:
    film(tmp_path / "other.mp4")
    for name in ("list.m3u8", "list.txt", "list.mp4"):
        (tmp_path / name).write_text(text)
        with pytest.raises(FrameError, match="no video that FFmpeg knows"):
            list(read_video(tmp_path / name))


def test_a_filter_that_does_not_fit_a_video_names_it(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4")
    with pytest.raises(FrameError, match=r"v\.mp4 does not go through the filters.*crop=200:200"):
        list(read_video(path, filters=["crop=200:200"]))


def test_filters_see_an_upright_video(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", lambda stream: stream.set_display_rotation(90))
    (first, *_) = read_video(path, filters=[f"crop={HEIGHT}:{WIDTH // 2}:0:0"])
    assert first.shape == (WIDTH // 2, HEIGHT, 3)


def test_an_interlaced_video_is_said_to_be_one(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264opts": "tff=1"}
    write_film(tmp_path / "v.ts", [picture(n) for n in range(4)], "libx264", options=options)
    about = About()
    list(read_video(tmp_path / "v.ts", about=about))
    assert "bwdif" in about.notes["interlaced"]
    about = About()
    assert list(read_video(tmp_path / "v.ts", filters=["bwdif=mode=send_frame"], about=about))
    assert "interlaced" not in about.notes
    about = About()
    list(read_video(film(tmp_path / "v.mp4"), about=about))
    assert "interlaced" not in about.notes
