"""Images, as files or in tars -> RGB pixels of one size. Worker processes import it: no torch."""

import itertools
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from pipeline.errors import FrameError
from pipeline.frames.films import FilmFrame, film_images
from pipeline.frames.tars import TarFrame
from pipeline.size import Size, centre, sides
from pipeline.storage.tars import Member, read_members

Frame = NDArray[np.uint8]
"""Pixels [H, W, 3]."""
FrameFile = str | TarFrame
"""An image: a path, or a place inside a tar; or a frame of a film there."""
TOGETHER = 1 << 24
"""Most bytes of neighbouring images that are read together, unless one has more."""
BACKGROUND = (0, 0, 0)
"""What is seen through transparent pixels, of images and of videos: black."""
SIGNED, WHITE_IS_ZERO, SAMPLE_FORMAT = 2, 0, 339
"""Values and a tag of TIFF."""
SRGB_GAMMA = 1 / 2.2
"""What a PNG that knows its gamma says of sRGB."""
GREY_SCALES = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies the levels of a PNG of 2 or 4 bits with, but not its transparent level."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
TURNED_BACK = {TURNS[6]: TURNS[8], TURNS[8]: TURNS[6]}
"""What undoes a turn; all others undo themselves."""
LOOKS = 8
"""First frames that are looked at together."""


def crop_resize(image: Image.Image, size: Size) -> Image.Image:
    """Cuts out the centre and resizes it as the published loader does (antialiased)."""
    height, width = sides(size)
    part = image.crop(centre(*image.size, size))
    if part.size == (width, height):
        return part
    return part.resize((width, height), Image.Resampling.BILINEAR)


def to_rgb(image: Image.Image, path: FrameFile) -> Image.Image:
    """Converts grey, palette, 16-bit and transparent images to 8-bit RGB.

    Of 16 bits the high byte is kept, of grey as of colour; behind transparent pixels there is
    `BACKGROUND`; colour profiles are not applied. Raises FrameError, naming `path`, for numbers of
    unknown range: they would turn black or white in silence.
    """
    image = _eight_bits(image, path)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    over = image.convert("RGBA")
    shown = Image.new("RGB", over.size, BACKGROUND)
    shown.paste(over, mask=over.getchannel("A"))
    return shown


def _eight_bits(image: Image.Image, path: FrameFile) -> Image.Image:
    """Returns an image that Pillow can convert to RGB, with or without transparency."""
    if image.mode == "F":
        raise FrameError(f"{path} holds floats; save it with 8 or 16 bits.")
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing else.
        return image.convert("LA")
    return _high_bytes(image, path) if image.mode.startswith("I") else image


def _high_bytes(image: Image.Image, path: FrameFile) -> Image.Image:
    """Returns 16-bit grey as 8-bit grey: Pillow's own conversion would clip it to 255."""
    # Pillow scales a PGM of another maximum to 16 bits, and then rounds colour: so is grey.
    is_scaled = any(tile.codec_name.startswith("ppm") for tile in getattr(image, "tile", ()))
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # Of a TIFF.
    (bits,) = tags.get(ExifTags.Base.BitsPerSample, (16,))
    if bits == 16 and tags.get(SAMPLE_FORMAT) == (SIGNED,):
        raise FrameError(f"{path} holds signed 16-bit values; save it with 8 or 16 bits, unsigned.")
    low, high = int(values.min()), int(values.max())
    # Pillow opens 16-bit PGM as 32-bit as well; there, small values are simply dark.
    is_small = image.mode == "I" and image.format not in ("PPM", "PNG") and 0 < high < 256
    if low < 0 or high > 65535 or is_small:
        raise FrameError(f"{path} holds 32-bit values {low} to {high}; save it with 8 or 16 bits.")
    shift = 4 if bits == 12 else 8
    grey = (values + 128) // 257 if is_scaled else values >> shift
    if tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO:
        grey = 255 - grey
    made = Image.fromarray(grey.astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        made.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return made


def _read_files(paths: Sequence[FrameFile]) -> Iterator[bytes]:
    """Yields the bytes of each image; those of neighbours in one tar are read together."""
    run: list[Member] = []
    size = 0
    for path in paths:
        if not isinstance(path, TarFrame):
            yield Path(path).read_bytes()
            continue
        member = path.member
        if run and (size + member.size > TOGETHER or member.tar != run[0].tar):
            yield from read_members(run)
            run, size = [], 0
        run.append(member)
        size += member.size
    if run:
        yield from read_members(run)


def _open_image(data: bytes, path: FrameFile) -> ImageFile.ImageFile:
    """Opens an image. Raises SyntaxError if the checksums of a PNG say that it was changed.

    Pillow looks at those of its pixels only when it is asked to, and cannot read on afterwards.
    Raises FrameError, naming `path`, for what could not be shown as it is meant.
    """
    image = Image.open(BytesIO(data))
    if image.format == "PNG":
        image.verify()
        image = Image.open(BytesIO(data))
        _mend_transparency(image, path)
    # Of the pictures of an MPO, which cameras make, viewers show the first.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        count = getattr(image, "n_frames", "several")
        raise FrameError(f"{path} holds {count} pictures; save each as a file of its own.")
    if image.format == "PPM" and image.tile[0].args == ("RGB", 65535):
        # Pillow would round these colours, and keeps the high byte of all others.
        image.tile = [image.tile[0]._replace(codec_name="raw", args="RGB;16B")]
    return image


def _mend_transparency(image: ImageFile.ImageFile, path: FrameFile) -> None:
    """Corrects which level of a PNG is transparent. Raises FrameError for 16-bit colour."""
    if "transparency" not in image.info or not image.tile:
        return
    kind = str(image.tile[0].args)
    if kind == "RGB;16B":  # Pillow compares it with the high bytes.
        raise FrameError(
            f"{path} marks one of its 16-bit colours as transparent, which is not read; save it "
            "with an alpha channel."
        )
    image.info["transparency"] *= GREY_SCALES.get(kind, 1)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what the EXIF orientation of an image asks for, if anything."""
    if image.format == "PNG":
        image.load()  # EXIF may follow the pixels.
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, struct.error):  # Damaged: viewers show the picture as it is.
        return None


def _shown(image: Image.Image, path: FrameFile, *, as_stored: bool) -> Image.Image:
    """Returns an image as RGB and upright, or `as_stored`."""
    turn = _turn(image)
    rgb = to_rgb(image, path)
    if turn is None:
        return rgb
    if image.format == "TIFF":  # Pillow has turned it.
        return rgb.transpose(TURNED_BACK.get(turn, turn)) if as_stored else rgb
    return rgb if as_stored else rgb.transpose(turn)


def read_frames(
    paths: Sequence[FrameFile], *, size: Size, as_stored: bool = False
) -> NDArray[np.uint8]:
    """Reads frames as [T, H, W, 3], centre-cropped and resized; see `read_images`."""
    frames = np.empty((len(paths), *sides(size), 3), dtype=np.uint8)
    for index, image in enumerate(read_images(paths, as_stored=as_stored)):
        frames[index] = np.asarray(crop_resize(image, size))
    return frames


def read_images(paths: Sequence[FrameFile], *, as_stored: bool = False) -> Iterator[Image.Image]:
    """Yields images of 8-bit RGB, each turned as its EXIF orientation says, unless `as_stored`.

    Neighbouring frames of a film are to be in order: see `film_images`. Raises FrameError, naming
    the file, if one is missing, unreadable, or not shown with the size of the first.
    """
    first: tuple[int, int] | None = None
    for path, shown in zip(paths, _shown_images(paths, as_stored=as_stored), strict=True):
        first = first or shown.size
        if shown.size != first:
            raise FrameError(
                f"{path} is {shown.size[0]}x{shown.size[1]} pixels, but {paths[0]} of the same "
                f"video is {first[0]}x{first[1]}; all frames must have one size."
            )
        yield shown


def _shown_images(paths: Sequence[FrameFile], *, as_stored: bool) -> Iterator[Image.Image]:
    films = itertools.groupby(paths, lambda path: isinstance(path, FilmFrame) and path.film)
    for film, run in films:
        if film:
            frames = [path for path in run if isinstance(path, FilmFrame)]
            yield from film_images(frames, as_stored=as_stored)
        else:
            yield from _decoded(list(run), as_stored=as_stored)


def _decoded(paths: Sequence[FrameFile], *, as_stored: bool) -> Iterator[Image.Image]:
    files = _read_files(paths)
    for path in paths:
        try:
            with _open_image(next(files), path) as image:
                shown = _shown(image, path, as_stored=as_stored)
                shown.load()  # While its file is open.
        except FileNotFoundError:
            raise FrameError(f"{path} is missing.") from None
        except UnidentifiedImageError:
            raise FrameError(f"{path} is not a readable image: of no kind that is known.") from None
        except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise FrameError(f"{path} is not a readable image: {error}.") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise FrameError(f"{path} is not a readable image: {error}.") from None
        yield shown


def look_at_first(firsts: Sequence[FrameFile], *, as_stored: bool = False) -> list[str]:
    """Says what is done to pictures that one might not expect, and to how many videos.

    Goes by the first frame of each, so that it costs little. One that cannot be read is left to
    who reads them all.
    """
    with ThreadPoolExecutor(LOOKS) as pool:
        looks = pool.map(lambda path: _peculiarities(path, as_stored=as_stored), firsts)
        counts = Counter(said for look in looks for said in look)
    return [f"{counts[said]} of {len(firsts)} videos begin with {said}" for said in sorted(counts)]


def _peculiarities(path: FrameFile, *, as_stored: bool) -> list[str]:
    found = []
    try:
        (data,) = _read_files([path])
        with _open_image(data, path) as image:
            if _turn(image) is not None:
                how = "read as stored" if as_stored else "shown upright"
                found.append(f"a frame that EXIF says to turn: such are {how}")
            # Names in profiles are UTF-16.
            profile = image.info.get("icc_profile", b"sRGB").replace(b"\0", b"")
            gamma = image.info.get("gamma", SRGB_GAMMA)
            if b"sRGB" not in profile or abs(gamma - SRGB_GAMMA) > 0.01:
                found.append("a frame of other colours than sRGB: such are read without a profile")
            if image.has_transparency_data:
                alpha = _eight_bits(image, path).convert("RGBA").getchannel("A")
                if alpha.getextrema() != (255, 255):
                    found.append("a transparent frame: such are shown over black")
    except (FrameError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    return found
