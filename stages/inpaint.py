"""a clip -> the same clip with a part drawn anew: frames, a box, a mask, or what lies outside."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.editing.clip import Box, Clip
from pipeline.editing.edits import Edit, inside
from pipeline.editing.shape import WindowShape
from stages.edit_options import BOX, FRAMES, EditOptions, editing_options
from stages.options import FILE


@click.command("inpaint")
@click.argument("clip", type=FILE)
@click.option("--mask", type=FILE, help="Picture of the size of CLIP, white where to draw anew.")
@click.option("--box", type=BOX, help="Pixels of CLIP to draw anew.")
@click.option(
    "--frames",
    type=FRAMES,
    default=":",
    help="Frames in which to draw, from 0 on; the last one is left out.  [default: all]",
)
@click.option("--every", type=click.IntRange(min=2), help="Keep one latent frame of so many.")
@editing_options
def command(
    clip: Path,
    mask: Path | None,
    box: Box | None,
    frames: slice,
    every: int | None,
    options: EditOptions,
) -> None:
    """Draw a part of the video CLIP anew.

    Which pixels is said by --mask or --box, in pixels of CLIP; else whole frames are drawn. All
    pixels of a token are drawn if one of them is, and this is said; all others are pasted back.
    --frames counts frames of CLIP at the rate that the model knows. A --crop may reach beyond
    CLIP: what lies outside is drawn. What is written, and which values count, is as with `mebt
    continue`.

    \b
    Example:
      mebt inpaint clip.mp4 --run run --tokenizer t.safetensors --box 8,8,24,24 --out inpainted
      mebt inpaint clip.mp4 --run run --tokenizer t.safetensors --mask m.png --frames 8:24 --out o
      mebt inpaint clip.mp4 --run run --tokenizer t.safetensors --crop -8,-8,80,80 --out wider
    """
    if mask and box:
        raise click.UsageError("give --mask or --box, not both.")

    def plan(clips: Sequence[Clip], shape: WindowShape) -> Edit:
        (read,) = clips
        pixels = read.mask(mask) if mask else read.box(box) if box else None
        return inside(read, shape, frames=frames, pixels=pixels, every=every)

    options.carry_out([clip], plan, mask)
