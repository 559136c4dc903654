"""Writes videos and moving pictures for eyes: mp4, webp, gif."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames.images import Frame
from pipeline.storage.files import replacing

ENCODER = {"qp": "18", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
"""Equal frames make equal files, on every processor and in every run: a fixed quantiser needs whole
numbers only, where `crf` reads memory that nobody wrote if there is AVX-512 (libx264 165); and what
x264 chooses depends on the instructions it has, so it is given none."""
RED, GREEN, BLUE = 0.2126, 0.7152, 0.0722
"""Shares of the luma, as BT.709 has them."""
ONE = 1 << 16
TO_YUV: NDArray[np.int64] = np.rint(
    np.array(
        [
            [219 * RED, 219 * GREEN, 219 * BLUE],
            [-112 * RED / (1 - BLUE), -112 * GREEN / (1 - BLUE), 112],
            [112, -112 * GREEN / (1 - RED), -112 * BLUE / (1 - RED)],
        ]
    )
    * (ONE / 255)
).astype(np.int64)
"""Bytes RGB to luma 16 … 235 and colour differences 16 … 240, in 65,536ths, without offsets."""
TICKS = {".gif": 100, ".webp": 1000}
"""Parts of a second in which a format counts how long a frame is shown."""
FASTEST = {".gif": 50.0, ".webp": 1000 / 11}
"""Frames per second beyond which browsers play a format at 10: they take delays of up to one
hundredth of a second for a mistake."""


def write_mp4(path: Path, frames: Frame, *, fps: float, enlarge: int = 1) -> None:
    """Writes frames [T, H, W, 3] as H.264 that every browser plays (lossy: for eyes only).

    Colours are those of BT.709, and the file says so. Equal frames make equal files.
    """
    with mp4_writer(path, fps=fps, enlarge=enlarge) as add:
        add(frames)


@contextmanager
def mp4_writer(path: Path, *, fps: float, enlarge: int = 1) -> Iterator[Callable[[Frame], None]]:
    """Yields what adds frames [T, H, W, 3] to a video, which is there when the block is left.

    The file is that of `write_mp4`, however the frames are parted; it takes no more memory.
    """
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)  # FFmpeg's own are fractions of small numbers.
        stream = container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.pix_fmt = "yuv420p"
        for name, value in COLOURS.items():
            setattr(stream.codec_context, name, value)

        def add(frames: Frame) -> None:
            enlarged = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
            # yuv420p needs even sides.
            height, width = (side + side % 2 for side in enlarged.shape[1:3])
            down, right = height - enlarged.shape[1], width - enlarged.shape[2]
            padded = np.pad(enlarged, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
            for frame in padded:
                container.mux(stream.encode(_to_yuv420(frame)))

        yield add
        container.mux(stream.encode())


COLOURS = {
    "colorspace": Colorspace.ITU709,
    "color_primaries": ColorPrimaries.BT709,
    "color_trc": ColorTrc.BT709,
    "color_range": ColorRange.MPEG,
}
"""Without these, players take another matrix for pictures of 720 lines or more."""


def _to_yuv420(frame: Frame) -> av.VideoFrame:
    """Converts RGB [H, W, 3] of even sides. FFmpeg's own way depends on the processor's."""
    red, green, blue = np.dsplit(frame.astype(np.int64), 3)
    y, u, v = (red * a + green * b + blue * c for a, b, c in TO_YUV)
    planes = [(y + 16 * ONE + ONE // 2) // ONE]
    for plane in (u, v):
        squares = rearrange(plane, "(h y) (w x) 1 -> h w (y x)", y=2, x=2).sum(-1)
        planes.append((squares + 4 * 128 * ONE + 2 * ONE) // (4 * ONE))
    packed = np.concatenate([plane.astype(np.uint8).ravel() for plane in planes])
    picture = av.VideoFrame.from_ndarray(packed.reshape(-1, frame.shape[1]), format="yuv420p")
    picture.colorspace, picture.color_range = Colorspace.ITU709, ColorRange.MPEG
    return picture


def write_sheet(path: Path, videos: Sequence[Frame], *, columns: int, fps: float) -> None:
    """Writes videos [T, H, W, 3] side by side as one looping picture (.webp or .gif)."""
    blank = np.full_like(videos[0], 255)
    rows = -(-len(videos) // columns)
    grid = np.stack([*videos, *[blank] * (rows * columns - len(videos))])
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = rearrange(grid, "(r c) t h w d -> t (r h) (c w) d", c=columns)
    write_animation(path, sheet, fps=fps)


def shown_every(suffix: str, fps: float) -> int:
    """Returns n if an animation shows each n-th frame only, as its format cannot play so fast."""
    return math.ceil(fps / FASTEST[suffix])


def write_animation(path: Path, frames: Frame, *, fps: float) -> None:
    """Writes frames [T, H, W, 3] as one looping picture (.webp or .gif) that plays at `fps`.

    Each frame ends at the tick nearest to its time, so that rounding does not add up. Of frames
    too fast for the format each n-th is shown, n times as long: see `shown_every`.
    """
    step = shown_every(path.suffix, fps)
    shown = range(0, max(1, len(frames) // step) * step, step)  # The last one stays for the rest.
    ticks = [round(number * TICKS[path.suffix] / fps) for number in (*shown, len(frames))]
    first, *rest = (Image.fromarray(frames[number]) for number in shown)
    settings = {"quality": 80, "method": 2} if path.suffix == ".webp" else {}
    with replacing(path) as temporary:
        first.save(
            temporary,
            format=path.suffix[1:],
            save_all=True,
            append_images=rest,
            duration=[(end - begin) * 1000 // TICKS[path.suffix] for begin, end in pairwise(ticks)],
            loop=0,
            **settings,
        )
