"""Images, as files or in tars -> square RGB pixels. Worker processes import it: no torch."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clip_tars import TarFrame
from pipeline.errors import FrameError
from pipeline.tars import Member, read_members

Frame = NDArray[np.uint8]
"""Pixels [H, W, 3]."""
FrameFile = str | TarFrame
"""An image: a path, or a place inside a tar."""
TOGETHER = 1 << 24
"""Most bytes of neighbouring images that are read together, unless one has more."""
LARGEST_SIDE = 4096
"""Side in pixels beyond which a wanted size is not believed: a frame would be 50 MB."""


def crop_resize(image: Image.Image, size: int) -> Image.Image:
    """Cuts the centre square and resizes it as the published loader does (antialiased)."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    if square.size == (size, size):
        return square
    return square.resize((size, size), Image.Resampling.BILINEAR)


def to_rgb(image: Image.Image, path: FrameFile) -> Image.Image:
    """Converts grey, palette, 16-bit and transparent images to 8-bit RGB.

    Raises FrameError, naming `path`, for numbers of unknown range: they would turn black or white
    in silence.
    """
    if image.mode == "F":
        raise FrameError(f"{path} holds floats; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip them to 255.
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        # Pillow opens 16-bit PGM as 32-bit as well; there, small values are simply dark.
        is_small = image.mode == "I" and image.format not in ("PPM", "PNG") and 0 < high < 256
        if low < 0 or high > 65535 or is_small:
            raise FrameError(
                f"{path} holds 32-bit values {low} to {high}; save it with 8 or 16 bits."
            )
        image = Image.fromarray((values // 257).astype(np.uint8))
    return image.convert("RGB")


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


def _open_image(data: bytes) -> Image.Image:
    """Opens an image. Raises SyntaxError if the checksums of a PNG say that it was changed.

    Pillow looks at those of its pixels only when it is asked to, and cannot read on afterwards.
    """
    image = Image.open(BytesIO(data))
    if image.format != "PNG":
        return image
    image.verify()
    return Image.open(BytesIO(data))


def read_frames(paths: Sequence[FrameFile], *, size: int) -> NDArray[np.uint8]:
    """Reads frames as [T, size, size, 3], centre-cropped and resized.

    Raises FrameError, naming the file, if one is missing, unreadable, or not the size of the first.
    """
    frames = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    first: tuple[int, int] | None = None
    files = _read_files(paths)
    for index, path in enumerate(paths):
        try:
            with _open_image(next(files)) as image:
                first = first or image.size
                if image.size != first:
                    raise FrameError(
                        f"{path} is {image.size[0]}x{image.size[1]} pixels, but {paths[0]} of the "
                        f"same video is {first[0]}x{first[1]}; all frames must have one size."
                    )
                frames[index] = np.asarray(crop_resize(to_rgb(image, path), size))
        except FileNotFoundError:
            raise FrameError(f"{path} is missing.") from None
        except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise FrameError(f"{path} is not a readable image: {error}.") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise FrameError(f"{path} is not a readable image: {error}.") from None
    return frames
