"""How well what is drawn joins what was kept, beside the real clip at the same border.

Run it from the repository's root, with the demo's footage fetched: `python -m benchmarks.seams`.
It cuts the clips in which most moves out of the held-out seconds, as the demo does, edits each in
four ways, by the values of the demo's samples, and writes the table of docs/steering.md: two
minutes on two cores.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.pages import replace_between
from mebt import SampleConfig
from pipeline.config import load_section
from pipeline.editing.clip import Clip
from pipeline.editing.edits import Edit, between, continued, inside
from pipeline.editing.regions import seam
from pipeline.editing.shape import WindowShape
from pipeline.frames.images import Frame
from pipeline.video.footage import About
from pipeline.video.reader import read_video
from pipeline.video.tiles import ExtractConfig, motion, tiles
from stages.editing import Editor
from stages.sample import SampleStageConfig

PAGE = Path("docs/steering.md")
BEGIN, END = "<!-- made by python -m benchmarks.seams -->\n", "<!-- end of seams -->\n"


def held_out(video: Path, params: Path, shape: WindowShape, count: int) -> list[Clip]:
    """Cuts clips of two windows out of the end of a video: tiles that share no pixel."""
    config, about = load_section(params, "extract", ExtractConfig), About()
    length = 2 * shape.frames(shape.grid[0])
    whole = deque(read_video(video, **config.reading, about=about), maxlen=length)
    height, width = whole[0].shape[:2]
    moves = motion(whole)
    boxes = sorted(
        tiles(width, height, config).values(),
        key=lambda box: -moves[box[1] : box[3], box[0] : box[2]].mean(),
    )
    chosen: list[tuple[int, int, int, int]] = []
    for box in boxes:
        apart = (
            b[0] >= box[2] or b[2] <= box[0] or b[1] >= box[3] or b[3] <= box[1] for b in chosen
        )
        if len(chosen) < count and all(apart):
            chosen.append(box)
    size = shape.size[::-1]
    return [
        Clip(
            str(box),
            np.stack([_resized(frame, box, size) for frame in whole]),
            *(about.rate, box, (height, width), ()),
        )
        for box in chosen
    ]


def _resized(frame: Frame, box: tuple[int, int, int, int], size: tuple[int, int]) -> Frame:
    left, top, right, bottom = box
    part = Image.fromarray(frame[top:bottom, left:right])
    return np.asarray(part.resize(size, Image.Resampling.BILINEAR))


def edits(clip: Clip, shape: WindowShape) -> Iterator[tuple[str, Edit, Frame]]:
    """Yields edits of a clip of two windows, each with the real frames that it stands for."""
    window = shape.frames(shape.grid[0])
    new = shape.grid[0] // 2 * shape.downsample[0]
    first, last = clip.frames[:window], clip.frames[-window:]
    onward = continued(replace(clip, frames=first), new, shape)
    yield "`continue`", onward, clip.frames[: window + new]
    sooner = continued(replace(clip, frames=last), new, shape, backward=True)
    yield "`continue --backward`", sooner, clip.frames[-len(sooner.frames) :]
    later = replace(clip, frames=clip.frames[window + new :])
    yield "`fill`", between(replace(clip, frames=first), later, new, shape), clip.frames
    middle = np.zeros(shape.size, np.bool_)
    down, across = (max(1, side * 3 // 8) for side in shape.size)
    top, left = shape.size[0] // 4, shape.size[1] // 4
    middle[top : top + down, left : left + across] = True
    boxed = inside(clip, shape, frames=slice(window // 2, window), pixels=middle)
    yield "`inpaint --box`", boxed, clip.frames


def table(editor: Editor, clips: Sequence[Clip], config: SampleConfig, seeds: int) -> str:
    """Edits clips and returns the table: PSNR in dB between neighbours, mean over draws."""
    found: dict[tuple[str, str], list[list[float | None]]] = {}
    for clip in clips:
        for name, edit, real in edits(clip, editor.shape):
            part = slice(edit.span.start, min(edit.span.stop, len(real)))
            hidden = edit.hidden[part]
            truth = seam(real[part], hidden)
            for video in editor.edit(edit, config, count=seeds):
                made = seam(video[part], hidden)
                for where in ("time", "space"):
                    row = [made[f"{where}_{what}"] for what in ("across", "kept", "new")]
                    found.setdefault((name, where), []).append([truth[f"{where}_across"], *row])
    head = "| edit | neighbours | across, real clip | across | both kept | both new |\n"
    lines = [head, "|---|---|---:|---:|---:|---:|\n"]
    for (name, where), rows in found.items():
        if any(row[1] is not None for row in rows):
            neighbours = "frames" if where == "time" else "pixels"
            cells = " | ".join(_mean(column) for column in zip(*rows, strict=True))
            lines.append(f"| {name} | {neighbours} | {cells} |\n")
    return "".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else "none"


def main(words: Sequence[str]) -> None:
    """Writes the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, default=Path("demo/data/fish/test_A.avi"))
    parser.add_argument("--params", type=Path, default=Path("demo/params.yaml"))
    parser.add_argument("--run", type=Path, default=Path("models/fish"))
    parser.add_argument("--tokenizer", type=Path, default=Path("models/fish-64.safetensors"))
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args(words)
    editor = Editor.open(asked.run, asked.tokenizer)
    clips = held_out(asked.video, asked.params, editor.shape, asked.clips)
    config = load_section(asked.params, "sample", SampleStageConfig)
    made = table(editor, clips, config, asked.seeds)
    said = (
        f"PSNR in dB, means over {len(clips)} held-out clips and {asked.seeds} draws of each:\n\n"
    )
    replace_between(PAGE, BEGIN, END, f"\n{said}{made}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
