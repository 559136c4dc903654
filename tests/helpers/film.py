"""Small films for tests: each frame is a picture that tells its number."""

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230)


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Draws quarters of four colours, and in the middle the number, a column for each bit."""
    pixels = np.empty((height, width, 3), np.uint8)
    x, y = width // 2, height // 2
    pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:] = RED, GREEN, BLUE, WHITE
    step = min(width, height) // 8
    for bit in range(8):
        left = x - 4 * step + bit * step
        pixels[y - step : y + step, left : left + step] = 235 if number >> bit & 1 else 16
    return pixels


def number_of(pixels: NDArray[np.uint8]) -> int:
    """Reads the number off an upright picture."""
    height, width = pixels.shape[:2]
    step = min(width, height) // 8
    columns = (width // 2 - 4 * step + bit * step + step // 2 for bit in range(8))
    row = pixels[height // 2].astype(int).sum(-1)
    return sum(int(row[column] > 384) << bit for bit, column in enumerate(columns))


def corners(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the colours near the corners, from left to right and from top to bottom."""
    height, width = pixels.shape[:2]
    y, x = height // 8, width // 8
    return pixels[[y, y, -1 - y, -1 - y], [x, -1 - x, x, -1 - x]].astype(np.int64)


def write_film(
    path: Path | io.BytesIO,
    frames: Iterable[NDArray[Any]],
    codec: str,
    *,
    rate: Fraction | int = 25,
    pixels: str = "yuv420p",
    source: str = "rgb24",
    times: Callable[[int], int] | None = None,
    clock: Fraction | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
) -> None:
    """Encodes frames; `times` says when each is shown, in units of `clock`."""
    target: Any = str(path) if isinstance(path, Path) else path
    with av.open(target, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pixels
        if clock:
            stream.codec_context.time_base = clock
        prepare(stream)
        for number, picture in enumerate(frames):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source)
            frame.pts = times(number) if times else number
            frame.time_base = clock or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def with_box(data: bytes, path: Sequence[bytes], box: bytes) -> bytes:
    """Adds a box to the end of another inside an .mp4 whose `moov` comes last."""
    data = bytearray(data)
    start, stop, sizes = 0, len(data), []
    for name in path:
        while (found := bytes(data[start + 4 : start + 8])) != name:
            start += struct.unpack_from(">I", data, start)[0]
            assert start < stop, (name, found)
        sizes.append(start)
        stop = start + struct.unpack_from(">I", data, start)[0]
        start += {b"stsd": 16, b"avc1": 86}.get(name, 8)
    for place in sizes:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(box))
    data[stop:stop] = box
    return bytes(data)


def clap_box(width: int, height: int, right: int, down: int) -> bytes:
    """Returns the box that shows so many pixels, so far off the middle."""
    numbers = (width, 1, height, 1, right, 1, down, 1)
    return struct.pack(">I4s4IiIiI", 40, b"clap", *numbers)


def with_first_box(data: bytes, parent: bytes, name: bytes) -> bytes:
    """Moves a box inside a top one of an .mp4 to be its second, behind its header."""

    def boxes(start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
        while start < stop:
            end = start + struct.unpack_from(">I", data, start)[0]
            yield data[start + 4 : start + 8], start, end
            start = end

    (inside,) = [span for kind, *span in boxes(0, len(data)) if kind == parent]
    parts = [(kind, data[start:end]) for kind, start, end in boxes(inside[0] + 8, inside[1])]
    parts.sort(key=lambda part: (part[0] != b"mvhd", part[0] != name))
    joined = b"".join(part for _, part in parts)
    return data[: inside[0] + 8] + joined + data[inside[1] :]
