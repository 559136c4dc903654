"""Videos of moving shapes, to try things out without any of one's own."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from pipeline.frames.images import Frame
from pipeline.size import sides
from pipeline.video.clips import Source
from pipeline.video.footage import About
from pipeline.video.tiles import ExtractConfig

SYNTHETIC_FRAMES, SYNTHETIC_RATE = 64, 25.0


def synthetic_videos(count: int, config: ExtractConfig) -> list[Source]:
    """Lists `count` seeded videos of moving shapes."""
    return [
        Source(
            f"shapes{i:05d}",
            f"moving shapes {config.seed} {i}",
            partial(_read_synthetic, max(sides(config.size)), config.seed * 2**20 + i),
        )
        for i in range(count)
    ]


def _read_synthetic(size: int, seed: int, *, about: About, threads: int) -> Iterator[Frame]:
    about.rate = SYNTHETIC_RATE
    yield from moving_shapes(SYNTHETIC_FRAMES, size, seed=seed)


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
