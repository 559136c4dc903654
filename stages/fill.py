"""two clips -> one video: what may have happened in between."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.editing.clip import Clip
from pipeline.editing.edits import Edit, between
from pipeline.editing.shape import WindowShape
from stages.edit_options import SECONDS, EditOptions, editing_options, num_frames
from stages.options import FILE


@click.command("fill")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--seconds", type=SECONDS, default=1.0, show_default=True, help="Time in between.")
@click.option(
    "--kept",
    type=click.IntRange(min=1),
    help="Frames of both that the model sees, half "
    "of them of each, where its window has no room for more.",
)
@editing_options
def command(
    first: Path, second: Path, seconds: float, kept: int | None, options: EditOptions
) -> None:
    """Draw what leads from the end of FIRST to the begin of SECOND.

    Brings both to the size and rate of the model's window, and writes FIRST, what was drawn in
    between, and SECOND as one video; frames of both are pasted back pixel for pixel. What is
    written, and which values count, is as with `mebt continue`.

    \b
    Example:
      mebt fill a.mp4 b.mp4 --run run --tokenizer t.safetensors --seconds 1 --out between
    """

    def plan(clips: Sequence[Clip], shape: WindowShape) -> Edit:
        a, b = clips
        return between(a, b, num_frames(seconds, a), shape, kept=kept)

    options.carry_out([first, second], plan)
