"""Images of every kind as viewers show them: upright, over one background, with equal levels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.errors import FrameError
from pipeline.frames.images import look_at_first, read_frames

T = Image.Transpose
STORED = {
    2: T.FLIP_LEFT_RIGHT,
    3: T.ROTATE_180,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    6: T.ROTATE_90,  # Counter-clockwise; 6 says that it is shown turned clockwise.
    7: T.TRANSVERSE,
    8: T.ROTATE_270,
}
"""EXIF orientation -> how a picture was turned before it was stored."""
QUARTERS = [[(220, 30, 30), (30, 200, 30)], [(30, 30, 220), (230, 230, 230)]]


def quarters(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.array(QUARTERS, np.uint8)).resize((width, height), 0)


def save(image: Image.Image, path: Path, orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"exif": exif} if path.suffix != ".tif" else {"tiffinfo": {0x0112: orientation}}
    if path.suffix == ".jpg":
        settings |= {"quality": 100, "subsampling": 0}
    image.save(path, lossless=True, compression="tiff_lzw", **settings)
    return str(path)


def png(depth: int, kind: int, pixels: bytes, side: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Makes a square PNG, with `chunks` before its pixels."""
    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    row = len(pixels) // side
    lines = b"".join(b"\0" + pixels[n * row : (n + 1) * row] for n in range(side))
    every = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in every
    )


def tiff(pixels: bytes, side: int, *, order: str = "<", **tags: int) -> bytes:
    """Makes a square TIFF; `tags` are t258=16 and so on."""
    pixels += b"\0" * (len(pixels) % 2)
    fields = {256: side, 257: side, 259: 1, 273: 8, 277: 1, 278: side, 279: len(pixels)}
    fields |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(fields.items())
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(fields)) + entries + bytes(4)


def centre(path: Path | str, size: int) -> NDArray[np.uint8]:
    return read_frames([str(path)], size=size)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_frames_are_turned_as_their_exif_says(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    shown = quarters(48, 32)
    turn = STORED.get(orientation)
    stored = shown if turn is None else shown.transpose(turn)
    path = save(stored, tmp_path / f"0{suffix}", orientation)
    for image, as_stored in ((shown, False), (stored, True)):
        expected = np.asarray(image).astype(int)
        top, left = ((side - 32) // 2 for side in expected.shape[:2])
        found = read_frames([path], size=32, as_stored=as_stored)[0]
        # JPEG rounds colours.
        assert np.abs(found - expected[top : top + 32, left : left + 32]).max() <= 2
    with Image.open(path) as image:
        assert image.format == {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())


def test_frames_must_have_one_size_as_shown(tmp_path: Path) -> None:
    shown = quarters(48, 32)
    paths = [
        save(shown, tmp_path / "0.png", 1),
        save(shown.transpose(STORED[6]), tmp_path / "1.png", 6),
        save(shown.transpose(STORED[5]), tmp_path / "2.tif", 5),
    ]
    frames = read_frames(paths, size=32)
    np.testing.assert_array_equal(frames[1:], frames[[0, 0]])
    with pytest.raises(FrameError, match=r"1\.png is 32x48 pixels, but .*0\.png .* is 48x32"):
        read_frames(paths[:2], size=32, as_stored=True)
    with pytest.raises(FrameError, match=r"2\.tif is 32x48 pixels"):
        read_frames(paths[::2], size=32, as_stored=True)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File:UserWarning")
@pytest.mark.parametrize("cut", [6, 9, 20, 25])
def test_damaged_exif_turns_nothing(tmp_path: Path, cut: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters(32, 32).save(tmp_path / "0.png", exif=exif.tobytes()[:cut])
    np.testing.assert_array_equal(centre(tmp_path / "0.png", 32), quarters(32, 32))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_there_is_not_turns_nothing(tmp_path: Path, orientation: int) -> None:
    path = save(quarters(32, 32), tmp_path / "0.png", orientation)
    np.testing.assert_array_equal(centre(path, 32), quarters(32, 32))


def test_every_transparency_of_every_level_is_shown_over_black(tmp_path: Path) -> None:
    levels, alphas = (a.astype(np.uint8) for a in np.meshgrid(range(256), range(256)))
    over_black = np.round(levels.astype(float) * alphas / 255)
    Image.fromarray(np.stack([levels, levels, levels, alphas], -1)).save(tmp_path / "rgba.png")
    Image.fromarray(np.stack([levels, alphas], -1)).save(tmp_path / "la.png")
    palette = Image.fromarray(levels)
    palette.putpalette([level for level in range(256) for _ in "rgb"])
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    for name in ("rgba", "la"):
        expected = np.stack([over_black] * 3, -1)
        np.testing.assert_array_equal(centre(tmp_path / f"{name}.png", 256), expected)
    expected = np.round(levels.astype(float) ** 2 / 255)
    np.testing.assert_array_equal(centre(tmp_path / "p.png", 256)[..., 1], expected)


@pytest.mark.parametrize(("mode", "colour"), [("LA", (100,)), ("RGBA", (100, 60, 20))])
def test_premultiplied_tiffs_are_shown_over_black(
    tmp_path: Path, mode: str, colour: tuple[int, ...]
) -> None:
    path = tmp_path / "0.tif"
    Image.new(mode, (8, 8), (*colour, 128)).save(path)
    data = path.read_bytes()
    extra = struct.pack("<HHI", 338, 3, 1)
    assert data.count(extra + b"\2\0") == 1
    path.write_bytes(data.replace(extra + b"\2\0", extra + b"\1\0"))
    assert np.abs(centre(path, 8)[0, 0] - np.array(colour)).max() <= 1  # As they lie there.


def test_one_transparent_colour_or_level_is_black(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.new("RGB", (8, 8), (10, 200, 30)).save(path, transparency=(10, 200, 30))
    assert centre(path, 8).max() == 0
    Image.new("RGB", (8, 8), (10, 200, 31)).save(path, transparency=(10, 200, 30))
    assert centre(path, 8)[0, 0].tolist() == [10, 200, 31]
    for depth, levels, scale in ((1, [1, 0] * 4, 255), (2, [1, 2, 3, 0], 85), (4, [5, 1], 17)):
        row = bytes([sum(n << 8 - depth * (place + 1) for place, n in enumerate(levels))])
        transparent = (b"tRNS", struct.pack(">H", levels[0]))
        path.write_bytes(png(depth, 0, row * len(levels), len(levels), transparent))
        assert centre(path, len(levels))[0, :, 0].tolist() == [
            0 if level == levels[0] else level * scale for level in levels
        ]


def test_of_16_bits_one_transparent_level_is_black(tmp_path: Path) -> None:
    row = struct.pack(">3H", 0x4001, 0x4002, 0x4001)
    (tmp_path / "0.png").write_bytes(png(16, 0, row * 3, 3, (b"tRNS", row[:2])))
    assert centre(tmp_path / "0.png", 3)[0, :, 0].tolist() == [0, 0x40, 0]
    (tmp_path / "1.png").write_bytes(png(16, 2, row, 1, (b"tRNS", row)))
    with pytest.raises(FrameError, match=r"1\.png marks one of its 16-bit colours as transparent"):
        centre(tmp_path / "1.png", 1)


RAMP = np.arange(1 << 16, dtype=np.uint16)
"""Every level of 16 bits: 256x256 pixels."""


@pytest.mark.parametrize("kind", ["png", "tif <", "tif >", "pnm"])
def test_16_bits_become_their_high_byte_in_grey_as_in_colour(tmp_path: Path, kind: str) -> None:
    order = kind[-1] if kind[-1] in "<>" else ">"
    grey = RAMP.astype(f"{order}u2")
    colour = np.repeat(grey, 3).tobytes()
    pairs = {
        "png": lambda: (png(16, 0, grey.tobytes(), 256), png(16, 2, colour, 256)),
        "pnm": lambda: (
            b"P5 256 256 65535\n" + grey.tobytes(),
            b"P6 256 256 65535\n" + colour,
        ),
        "tif": lambda: (
            tiff(grey.tobytes(), 256, order=order, t258=16, t262=1),
            tiff(colour, 256, order=order, t258=16, t262=2, t277=3),
        ),
    }
    for number, data in enumerate(pairs[kind[:3]]()):
        (tmp_path / f"{number}.png").write_bytes(data)  # What it is, its content says.
        found = centre(tmp_path / f"{number}.png", 256)
        np.testing.assert_array_equal(found, np.repeat(RAMP >> 8, 3).reshape(256, 256, 3))


@pytest.mark.parametrize("most", [256, 1023, 4095, 65534])
def test_pnm_of_another_maximum_is_equal_in_grey_and_colour(tmp_path: Path, most: int) -> None:
    levels = np.linspace(0, most, 64 * 64).astype(">u2")
    (tmp_path / "0.pgm").write_bytes(b"P5 64 64 %d\n" % most + levels.tobytes())
    (tmp_path / "0.ppm").write_bytes(b"P6 64 64 %d\n" % most + np.repeat(levels, 3).tobytes())
    grey = centre(tmp_path / "0.pgm", 64)
    np.testing.assert_array_equal(grey, centre(tmp_path / "0.ppm", 64))
    assert (grey.min(), grey.max()) == (0, 255)


def test_a_tiff_may_count_from_white_or_have_12_bits(tmp_path: Path) -> None:
    (tmp_path / "0.tif").write_bytes(tiff(struct.pack("<4H", *[0x1234] * 4), 2, t258=16, t262=0))
    assert centre(tmp_path / "0.tif", 2)[0, 0, 0] == 255 - 0x12
    (tmp_path / "1.tif").write_bytes(tiff(b"\xab\xca\xbc" * 2, 2, t258=12, t262=1))
    assert centre(tmp_path / "1.tif", 2)[0, 0, 0] == 0xAB
    (tmp_path / "2.tif").write_bytes(
        tiff(struct.pack("<4H", *[0x1234] * 4), 2, t258=16, t262=1, t339=2)
    )
    with pytest.raises(FrameError, match=r"2\.tif holds signed 16-bit values"):
        centre(tmp_path / "2.tif", 2)


@pytest.mark.parametrize("kind", ["png", "webp", "tif", "gif"])
def test_several_pictures_in_one_file_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    pictures = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(3)]
    path = tmp_path / f"0.{kind}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
    with pytest.raises(FrameError, match=rf"0\.{kind} holds 3 pictures; save each as a file"):
        centre(path, 8)


def test_of_a_camera_s_two_pictures_the_first_is_shown(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), (90 * n, 0, 0)) for n in (1, 2)]
    pictures[0].save(tmp_path / "0.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert abs(int(centre(tmp_path / "0.jpg", 16)[8, 8, 0]) - 90) <= 2


def test_what_one_might_not_expect_is_said_of_first_frames(tmp_path: Path) -> None:
    turned = save(quarters(32, 16), tmp_path / "turned.jpg", 6)
    plain = save(quarters(32, 16), tmp_path / "plain.jpg", 1)
    profiles = {"srgb": ImageCms.createProfile("sRGB"), "lab": ImageCms.createProfile("LAB")}
    for name, profile in profiles.items():
        data = ImageCms.ImageCmsProfile(profile).tobytes()
        quarters(32, 16).save(tmp_path / f"{name}.jpg", icc_profile=data)
    for alpha in (254, 255):
        Image.new("RGBA", (8, 8), (9, 9, 9, alpha)).save(tmp_path / f"{alpha}.png")
    (tmp_path / "linear.png").write_bytes(
        png(8, 0, bytes(4), 2, (b"gAMA", struct.pack(">I", 100_000)))
    )
    names = ("srgb.jpg", "lab.jpg", "254.png", "255.png", "linear.png", "gone.png")
    firsts = [turned, plain, turned, *(str(tmp_path / name) for name in names)]
    colours = "2 of 9 videos begin with a frame of other colours than sRGB: such are read without"
    assert look_at_first(firsts) == [
        f"{colours} a profile",
        "2 of 9 videos begin with a frame that EXIF says to turn: such are shown upright",
        "1 of 9 videos begin with a transparent frame: such are shown over black",
    ]
    assert "such are read as stored" in look_at_first(firsts, as_stored=True)[1]
    assert look_at_first([plain]) == []


def test_what_is_no_image_is_said_in_the_same_words_each_time(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(FrameError) as error:
        centre(tmp_path / "0.png", 8)
    assert str(error.value) == (
        f"{tmp_path / '0.png'} is not a readable image: of no kind that is known."
    )
