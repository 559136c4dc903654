"""How videos are cut into clips, and pixels. The only place where pixel ranges change."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.frames.images import LARGEST_SIDE, Frame

MOTION_LEVELS = 24
"""A pixel moves if its darkest and brightest value in a clip are further apart than this."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How videos become frame folders."""

    size: int = 128
    """Side of the square frames, in pixels."""
    tile: int | None = None
    """Side of the squares that the scene is cut into, in pixels of the video; null: one square
    from the centre. For a camera that stands still over a large scene."""
    tile_hop: int | None = None
    """Pixels from one tile to the next; null: tiles that touch."""
    fps: float | None = None
    """Frames per second to keep: those nearest to even times, never more than the video has;
    null: all, however uneven."""
    filters: tuple[str, ...] = ()
    """FFmpeg filters that every frame goes through first, each as NAME or NAME=OPTIONS: deflicker
    for a lamp that flickers with the mains, atadenoise against noise. Tokens have to tell whatever
    changes from frame to frame, and models to predict it."""
    clip_frames: int | None = None
    """Frames per clip; null: each tile of a video is one clip."""
    min_motion: float = 0.0
    """Share of the video's pixels that must move for a clip to be kept; needs `clip_frames`."""
    test_share: float = 0.1
    """Last part of each video's time that goes to the test split, unless videos lie in folders
    `train` and `test` already."""
    image: Literal["png", "jpg"] = "png"
    """png is exact; jpg (quality 95) is a quarter of the size."""
    as_stored: bool = False
    """Ignore what a file says of how it is to be shown: turned, mirrored, cropped, or in pixels
    that are not square."""
    seed: int = 0
    """Draws the synthetic videos."""

    def __post_init__(self) -> None:
        for name in ("size", "tile", "tile_hop", "clip_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.size > LARGEST_SIDE:
            raise ValueError(f"size must be at most {LARGEST_SIDE}, got {self.size}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be above 0 and finite, got {self.fps}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share must be in [0, 1), got {self.test_share}.")
        if not 0 <= self.min_motion < 1:
            raise ValueError(f"min_motion must be in [0, 1), got {self.min_motion}.")
        if self.min_motion and self.clip_frames is None:
            raise ValueError("min_motion needs clip_frames: it looks at one clip at a time.")
        if self.tile_hop and not self.tile:
            raise ValueError("tile_hop needs tile.")


def tiles(width: int, height: int, config: ExtractConfig) -> dict[str, tuple[int, int, int, int]]:
    """Returns the boxes (left, top, right, bottom) to cut out, by the suffix of their name."""
    if config.tile is None:
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return {"": (left, top, left + short, top + short)}
    hop = config.tile_hop or config.tile
    corners = itertools.product(
        range(0, height - config.tile + 1, hop), range(0, width - config.tile + 1, hop)
    )
    return {f"-x{x}-y{y}": (x, y, x + config.tile, y + config.tile) for y, x in corners}


def motion(frames: Sequence[Frame]) -> NDArray[np.bool_]:
    """Returns which pixels move, [H, W]: see `MOTION_LEVELS`."""
    brightest = np.maximum.reduce(frames).astype(np.int16)
    moves: NDArray[np.bool_] = (brightest - np.minimum.reduce(frames)).max(-1) > MOTION_LEVELS
    return moves


def moving_shapes(num_frames: int, size: int, *, seed: int) -> Iterator[Frame]:
    """Draws two or three shapes that drift and bounce over a shaded ground, as [size, size, 3]."""
    rng = np.random.default_rng(seed)
    scale = 4  # Drawn large and shrunk, so that edges are smooth and motion finer than a pixel.
    side = size * scale
    ground = np.linspace(rng.integers(60, 120), rng.integers(140, 220), side, dtype=np.float64)
    shade = np.repeat(ground[:, None], side, axis=1)
    image = np.stack([shade * tint for tint in rng.uniform(0.7, 1.0, 3)], axis=-1).astype(np.uint8)
    count = int(rng.integers(2, 4))
    place = rng.uniform(0.2, 0.8, (count, 2)) * side
    speed = rng.uniform(-0.05, 0.05, (count, 2)) * side
    radius = rng.uniform(0.08, 0.18, count) * side
    colours = rng.integers(0, 256, (count, 3))
    round_ones = rng.random(count) < 0.5
    for _ in range(num_frames):
        canvas = Image.fromarray(image)
        draw = ImageDraw.Draw(canvas)
        for (x, y), r, colour, is_round in zip(place, radius, colours, round_ones, strict=True):
            shape = draw.ellipse if is_round else draw.rectangle
            shape((x - r, y - r, x + r, y + r), fill=tuple(int(part) for part in colour))
        yield np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
        place = place + speed
        outside = (place < radius[:, None]) | (place > side - radius[:, None])
        inward = np.where(place < side / 2, np.abs(speed), -np.abs(speed))
        speed = np.where(outside, inward, speed)


def to_model(frames: Frame | Tensor) -> Tensor:
    """Turns bytes [..., T, H, W, 3] into float32 [..., 3, T, H, W] in -0.5 … 0.5."""
    video = torch.as_tensor(frames).movedim(-1, -4)
    return video.to(torch.float32) / 255 - 0.5


def to_bytes(video: Tensor, *, truncate: bool = False) -> Frame:
    """Turns float [..., 3, T, H, W] around -0.5 … 0.5 into bytes [..., T, H, W, 3], rounded.

    `truncate` drops the fraction instead, as the published code does.
    """
    levels = (video.float().clamp(-0.5, 0.5) + 0.5) * 255
    levels = (levels if truncate else levels.round()).to(torch.uint8)
    array: Frame = levels.movedim(-4, -1).cpu().numpy()
    return array


def published_bytes(frames: Frame) -> Frame:
    """Returns what real frames became in published measurements: 63 of 256 levels are one less."""
    return to_bytes(to_model(frames), truncate=True)
