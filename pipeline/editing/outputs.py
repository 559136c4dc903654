"""The folder of an edited video: an mp4 of each draw, all side by side, exact frames, numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.editing.edits import Edit
from pipeline.editing.regions import seam
from pipeline.frames.images import Frame
from pipeline.storage.files import remove, replacing, write_json
from pipeline.storage.outputs import prepare_folder
from pipeline.video.decoded import EXACT, create_exact
from pipeline.video.writer import write_mp4, write_sheet

RECORD, METRICS, SHEET = "edit.json", "metrics.json", "sheet.webp"
COLUMNS = 6
"""Videos side by side on the sheet."""
GREY = 128
"""What stands on the sheet where the model was shown nothing."""


def prepare(out: Path, made_from: dict[str, Any], *, overwrite: bool) -> None:
    """Makes room in a folder, under its lock. Raises PipelineError if it holds something else."""
    prepare_folder(out, RECORD, made_from, what="folder of an edited video", overwrite=overwrite)
    remove(out / METRICS)  # Until the new one is there, the folder is not finished.


def write_edit(
    out: Path, edit: Edit, made: Sequence[Frame], *, fps: float, exact: bool
) -> dict[str, Any]:
    """Writes the videos that were drawn, and beside them on a sheet what the model was shown.

    Each of `made` is [T, H, W, 3]. The sheet shows the frames that the model saw. Returns the
    numbers, written last: the seam of each, as `seam` measures it in these frames.
    """
    for number, video in enumerate(made):
        write_mp4(out / f"{number:05d}.mp4", video, fps=fps)
    if exact:
        _write_exact(out / EXACT, made)
    shown = slice(edit.span.start, min(edit.span.stop, len(edit.frames)))
    hidden = edit.hidden[shown]
    real = edit.frames[shown]
    given = np.where(hidden[..., None], np.uint8(GREY), real)
    panels = [given, *(video[shown] for video in made)]
    write_sheet(out / SHEET, panels, columns=min(COLUMNS, len(panels)), fps=fps)
    seams = [seam(video[shown], hidden) for video in made]
    numbers = {"seam": seams, "frames_seen": [shown.start, shown.stop]}
    write_json(out / METRICS, numbers)
    return numbers


def _write_exact(path: Path, made: Sequence[Frame]) -> None:
    """Writes videos as an array [N, T, H, W, 3], one chunk a video, whole or not at all."""
    with replacing(path) as temporary:
        array = create_exact(temporary, (len(made), *made[0].shape), len(made[0]))
        for number, video in enumerate(made):
            array[number] = video
