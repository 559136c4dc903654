"""a clip -> the same clip, going on: tokenize, keep, draw, decode, paste, in one."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.editing.clip import Clip
from pipeline.editing.edits import Edit, continued
from pipeline.editing.shape import WindowShape
from stages.edit_options import SECONDS, EditOptions, editing_options, num_frames
from stages.options import FILE


@click.command("continue")
@click.argument("clip", type=FILE)
@click.option("--seconds", type=SECONDS, default=1.0, show_default=True, help="How much to add.")
@click.option(
    "--kept",
    type=click.IntRange(min=1),
    help="Frames of CLIP that the model sees, in "
    "whole latent frames.  [default: half its window, or what there is]",
)
@click.option("--backward", is_flag=True, help="Add what came before CLIP.")
@editing_options
def command(
    clip: Path, seconds: float, kept: int | None, backward: bool, options: EditOptions
) -> None:
    """Let the video CLIP go on, or begin sooner.

    Brings it to the size and rate of the model's window, encodes its end, draws what follows,
    --seeds times, and decodes that; frames of CLIP are pasted back pixel for pixel. Beyond one
    window, one slides, and begins with --kept frames of what there is.

    Writes OUT/00000.mp4 and so on, and OUT/sheet.webp: what the model was shown, then each draw.
    OUT/metrics.json says how well old and new join. CLIP is read as section `extract` says
    (filters, as_stored), and drawn by section `sample` (but for num_samples, keep, total_frames,
    context_frames and compile).

    \b
    Example:
      mebt continue clip.mp4 --run run --tokenizer t.safetensors --seconds 4 --out continued
      mebt continue clip.mp4 --run run --tokenizer t.safetensors --backward --seeds 4 --out before
    """

    def plan(clips: Sequence[Clip], shape: WindowShape) -> Edit:
        (read,) = clips
        return continued(read, num_frames(seconds, read), shape, kept=kept, backward=backward)

    options.carry_out([clip], plan)
