"""How videos are cut: which parts of a frame, and which of these move."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.images import Frame
from pipeline.size import Size, centre, check_size, sides

MOTION_LEVELS = 24
"""A pixel moves if its darkest and brightest value in a clip are further apart than this."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How videos become frame folders."""

    size: Size = 128
    """Pixels of the frames: the side of a square, or [height, width]. The centre of that shape is
    cut out and resized, never stretched."""
    tile: Size | None = None
    """Pixels of the video in each of the tiles that the scene is cut into, as `size`; null: one
    tile, as large as can be, from the centre. For a camera that stands still over a large scene."""
    tile_hop: Size | None = None
    """Pixels from one tile to the next, of which [down, across]; null: tiles that touch."""
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

    @property
    def reading(self) -> dict[str, Any]:
        """What `read_video` is told of it."""
        return {"fps": self.fps, "filters": self.filters, "as_stored": self.as_stored}

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_size("size", self.size))
        for name in ("tile", "tile_hop"):
            value = getattr(self, name)
            if value is not None and min(sides(value)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.clip_frames is not None and self.clip_frames < 1:
            raise ValueError(f"clip_frames must be at least 1, got {self.clip_frames}.")
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
        return {"": centre(width, height, config.size)}
    tall, wide = sides(config.tile)
    down, across = sides(config.tile_hop or config.tile)
    corners = itertools.product(
        range(0, height - tall + 1, down), range(0, width - wide + 1, across)
    )
    return {f"-x{x}-y{y}": (x, y, x + wide, y + tall) for y, x in corners}


def motion(frames: Sequence[Frame]) -> NDArray[np.bool_]:
    """Returns which pixels move, [H, W]: see `MOTION_LEVELS`."""
    brightest = np.maximum.reduce(frames).astype(np.int16)
    moves: NDArray[np.bool_] = (brightest - np.minimum.reduce(frames)).max(-1) > MOTION_LEVELS
    return moves
