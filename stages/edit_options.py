"""What `mebt continue`, `fill` and `inpaint` share: options, and one way from them to videos."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.config import as_dict, load_section
from pipeline.editing.clip import Box, Clip
from pipeline.editing.edits import Edit
from pipeline.editing.outputs import SHEET, prepare, write_edit
from pipeline.editing.shape import WindowShape
from pipeline.rates import playing_rate
from pipeline.storage.files import keep_apart, lock
from pipeline.video.tiles import ExtractConfig
from stages.asked import Asked
from stages.editing import Editor
from stages.options import (
    FILE,
    FOLDER,
    OUT,
    NumberRange,
    device_option,
    overwrite_option,
    params_options,
)
from stages.sections import owner

MOST_DRAWN = 64
"""Draws of one edit: all their frames are in memory."""
MOST_SECONDS = 3600.0
NO_EFFECT = (
    *("num_samples", "batch_size", "compile", "precision"),
    *("keep", "total_frames", "context_frames", "redraw_frames"),
)
"""Values of section `sample` that the command line says instead, or that change no pixel."""
GUIDANCE = ("guidance", "revise_guidance")
"""Those that change none where nothing is asked for."""


class BoxType(click.ParamType):  # type: ignore[type-arg]
    """Four whole numbers with commas between."""

    name = "x,y,width,height"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Box:
        """Returns the numbers; width and height are at least 1."""
        try:
            x, y, width, height = map(int, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not x,y,width,height, in whole pixels.", param, ctx)
        if width < 1 or height < 1:
            self.fail(f"{value!r} holds no pixel: width and height are at least 1.", param, ctx)
        return x, y, width, height


class FramesType(click.ParamType):  # type: ignore[type-arg]
    """`start:stop`, each of which may be left out."""

    name = "start:stop"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> slice:
        """Returns the slice; numbers are 0 or more."""
        words = str(value).split(":")
        if isinstance(value, slice):
            return value
        if len(words) != 2 or not all(word.isdecimal() or not word for word in words):
            self.fail(f"{value!r} is not start:stop, such as 8:24.", param, ctx)
        start, stop = (int(word) if word else None for word in words)
        return slice(start, stop)


BOX, FRAMES = BoxType(), FramesType()
SECONDS = NumberRange(min=0, min_open=True, max=MOST_SECONDS)


@dataclass(frozen=True)
class EditOptions:
    """What the options of `editing_options` say."""

    run: Path
    tokenizer: Path
    out: Path
    seeds: int
    crop: Box | None
    labels: tuple[str, ...]
    states: Path | None
    exact: bool
    params: Path
    overrides: tuple[str, ...]
    device: str
    overwrite: bool

    def carry_out(
        self,
        clips: Sequence[Path],
        plan: Callable[[Sequence[Clip], WindowShape], Edit],
        *inputs: Path | None,
    ) -> None:
        """Reads clips, plans what to draw of them, draws it and writes it; says what was done.

        `inputs` are other files that are read. Nothing is written before all is known to fit.
        """
        keep_apart(self.out, *clips, *inputs, self.states, self.run, self.tokenizer, self.params)
        config: Any = load_section(self.params, "sample", owner("sample"), self.overrides)
        reading = load_section(self.params, "extract", ExtractConfig, self.overrides).reading
        editor = Editor.open(
            self.run, self.tokenizer, device=self.device, precision=config.precision
        )
        asked = Asked(self.labels, self.states) if self.labels or self.states else None
        editor.check(config, asked)
        read = [editor.read(path, reading=reading, crop=self.crop) for path in clips]
        edit = plan(read, editor.shape)
        conditions = editor.conditions(edit, asked) if asked else None
        fps, unknown = playing_rate(None, edit.fps)
        wanted = conditions.said(self.seeds) if conditions else ""
        for line in (*edit.said, unknown, wanted, surprise_line(editor, edit)):
            if line:
                click.echo(line)
        no_effect = NO_EFFECT if asked else (*NO_EFFECT, *GUIDANCE)
        values = {key: value for key, value in as_dict(config).items() if key not in no_effect}
        made_from = {
            **{**editor.made_from, "precision": editor.precision, "edit": edit.fingerprint()},
            **{"seeds": self.seeds, "exact": self.exact, "sample": values},
            **(asked.recorded() if asked else {}),
        }
        with lock(self.out):
            prepare(self.out, made_from, overwrite=self.overwrite)
            made = editor.edit(edit, config, count=self.seeds, conditions=conditions)
            numbers = write_edit(self.out, edit, made, fps=fps, exact=self.exact)
        for line in seam_lines(numbers["seam"]):
            click.echo(line)
        start, stop = numbers["frames_seen"]
        click.echo(
            f"{self.out}: {self.seeds} videos of {len(edit.frames)} frames; frames {start}:{stop}, "
            f"which the model saw, are side by side on {self.out / SHEET}"
        )


def surprise_line(editor: Editor, edit: Edit) -> str:
    """Says whether what is kept looks like what the model learned."""
    if (found := editor.surprise(edit)) is None:
        return ""
    loss, chance = found
    return (
        f"half of the kept tokens, predicted from the others: {loss:.2f} nats each, by chance "
        f"{chance:.2f}; far more than val_loss of the run means that its videos look otherwise"
    )


def seam_lines(seams: Sequence[dict[str, float | None]]) -> list[str]:
    """Says how neighbouring pixels differ across the seam, on average over draws."""
    lines = []
    for where in ("time", "space"):
        means = {}
        for what in ("across", "kept", "new"):
            values = [value for seam in seams if (value := seam[f"{where}_{what}"]) is not None]
            means[what] = f"{sum(values) / len(values):.1f} dB" if values else "none"
        if means["across"] != "none":
            neighbours = "frame to frame" if where == "time" else "pixel to pixel"
            lines.append(
                f"seam, {neighbours}: PSNR {means['across']} across, {means['kept']} inside what "
                f"was kept, {means['new']} inside what is new"
            )
    return lines


def editing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what all commands that edit share; the command gets it as one argument `options`."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        names = EditOptions.__dataclass_fields__
        options = EditOptions(**{name: values.pop(name) for name in names})
        return command(options=options, **values)

    for option in (
        overwrite_option,
        device_option,
        params_options,
        click.option("--exact", is_flag=True, help="Write OUT/frames.zarr, exact pixels, as well."),
        click.option(
            "--states",
            type=FILE,
            help="Draw what these numbers of each frame lead to, such as actions: a .csv or "
            ".parquet; frame 0 is the first of the video that is made.",
        ),
        click.option(
            "--label",
            "labels",
            multiple=True,
            help="Draw this, a label that the model knows; several are dealt out in turn.",
        ),
        click.option(
            "--crop",
            type=BOX,
            help="Part of the video that the model sees, in its pixels; of it the middle, in the "
            "shape of the model's frames.  [default: all]",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(min=1, max=MOST_DRAWN),
            default=1,
            show_default=True,
            help="How many times to draw it, each time otherwise.",
        ),
        click.option("--out", type=OUT, required=True, help="Folder of videos to make."),
        click.option(
            "--tokenizer", type=FILE, required=True, help="Tokenizer that made the run's tokens."
        ),
        click.option("--run", type=FOLDER, required=True, help="Run whose model draws."),
    ):
        run = option(run)
    return run


def num_frames(seconds: float, clip: Clip) -> int:
    """Returns how many frames of a clip play so long, at least one."""
    return max(1, round(seconds * playing_rate(None, clip.fps)[0]))
