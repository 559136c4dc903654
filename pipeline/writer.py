"""Writes videos and moving pictures for eyes: mp4, webp, gif."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from einops import rearrange
from PIL import Image

from pipeline.files import replacing
from pipeline.images import Frame


def write_mp4(path: Path, frames: Frame, *, fps: float, enlarge: int = 1) -> None:
    """Writes frames [T, H, W, 3] as H.264 that every browser plays (lossy: for eyes only)."""
    enlarged = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = (side + side % 2 for side in enlarged.shape[1:3])  # yuv420p needs even sides.
    padded = np.pad(
        enlarged,
        ((0, 0), (0, height - enlarged.shape[1]), (0, width - enlarged.shape[2]), (0, 0)),
        mode="edge",
    )
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        rate = Fraction(fps).limit_denominator(1001)  # FFmpeg's own are fractions of small numbers.
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in padded:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_sheet(path: Path, videos: Sequence[Frame], *, columns: int, fps: float) -> None:
    """Writes videos [T, H, W, 3] side by side as one looping picture (.webp or .gif)."""
    blank = np.full_like(videos[0], 255)
    rows = -(-len(videos) // columns)
    grid = np.stack([*videos, *[blank] * (rows * columns - len(videos))])
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = rearrange(grid, "(r c) t h w d -> t (r h) (c w) d", c=columns)
    write_animation(path, sheet, fps=fps)


def write_animation(path: Path, frames: Frame, *, fps: float) -> None:
    """Writes frames [T, H, W, 3] as one looping picture (.webp or .gif)."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    settings = {"quality": 80, "method": 2} if path.suffix == ".webp" else {}
    with replacing(path) as temporary:
        first.save(
            temporary,
            format=path.suffix[1:],
            save_all=True,
            append_images=rest,
            duration=round(1000 / fps),
            loop=0,
            **settings,
        )
