"""Clips as animations that the page itself holds, side by side in one where they are compared."""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.metrics import psnr, squared_error
from pipeline.report.charts import number
from pipeline.report.clips import Clip, NearestPair, Pair
from pipeline.video.writer import write_animation


@dataclass(frozen=True, kw_only=True)
class Animation:
    """A clip in two data URIs: moving, and its first frame for readers who want less motion."""

    about: str
    width: int
    height: int
    moving: str
    still: str


@dataclass(frozen=True)
class Strip:
    """Clips side by side in one animation, so that they cannot drift apart."""

    name: str
    panels: Sequence[str]
    """What stands below each clip."""
    animation: Animation


def animate(frames: Clip, fps: float, about: str) -> Animation:
    """Writes a clip as an animation for the page."""
    height, width = frames.shape[1:3]
    return Animation(
        about=about,
        width=width,
        height=height,
        moving=_data_uri(frames, fps),
        still=_data_uri(frames[:1], fps),
    )


def _data_uri(frames: Clip, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webp"
        write_animation(path, frames, fps=fps)
        return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()


def samples_beside(pairs: Sequence[Pair], samples: Sequence[Clip]) -> Sequence[Clip]:
    """Returns the samples that pairs have room for: none if they are of another size."""
    fits = all(
        sample.shape == pair.real.shape for sample, pair in zip(samples, pairs, strict=False)
    )
    return samples[: len(pairs)] if fits else ()


def pair_strips(pairs: Sequence[Pair], samples: Sequence[Clip], fps: float) -> list[Strip]:
    """Puts a real clip, its reconstruction and, as long as there are any, a sample in a row."""
    strips = []
    for index, pair in enumerate(pairs):
        panels = {"real": pair.real, "from its tokens": pair.reconstruction}
        if index < len(samples):
            panels["new"] = samples[index]
        row = np.concatenate(list(panels.values()), axis=2)
        about = f"{pair.name}: {', '.join(panels)}"
        strips.append(Strip(pair.name, list(panels), animate(row, fps, about)))
    return strips


def nearest_strips(pairs: Sequence[NearestPair], fps: float) -> list[Strip]:
    """Puts a sample and the training clip nearest to it in a row, with how alike they are."""
    strips = []
    for pair in pairs:
        row = np.concatenate([pair.sample, pair.training], axis=2)
        error = squared_error(pair.sample, pair.training)
        likeness = f"PSNR {psnr(error):.1f} dB" if error else "the same pictures"
        about = f"training: {pair.distance:.0%} of tokens differ, {likeness}"
        strips.append(Strip(pair.name, ["new", about], animate(row, fps, pair.name)))
    return strips


def preview_rows(previews: Mapping[int, Sequence[Clip]], fps: float) -> list[Animation]:
    """Puts what was drawn of one seed at each step in a row."""
    steps = sorted(previews)
    named = f"at steps {', '.join(map(number, steps))}"
    rows = zip(*(previews[step] for step in steps), strict=True)
    return [
        animate(np.concatenate(clips, axis=2), fps, f"sample {seed} {named}")
        for seed, clips in enumerate(rows)
    ]
