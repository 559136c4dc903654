"""Pixels that are drawn anew: hidden from the tokenizer, and how well they join the others."""

import numpy as np
from numpy.typing import NDArray

from pipeline.editing.shape import Mask
from pipeline.frames.images import Frame
from pipeline.metrics import psnr


def hide(frames: Frame, hidden: Mask) -> Frame:
    """Replaces hidden pixels of [T, H, W, 3] by the nearest that is not: in time, else in its row.

    So tokens that are kept tell nothing of what is hidden beside them. Where rows hold nothing,
    columns are searched; if all is hidden, it stays.
    """
    shown, known = frames, ~hidden
    for axis in (0, 2, 1):
        nearest = _nearest(known, axis)
        shown = np.take_along_axis(shown, nearest[..., None], axis=axis)
        known = np.take_along_axis(known, nearest, axis=axis)
    return shown


def _nearest(known: Mask, axis: int) -> NDArray[np.intp]:
    """Returns the index along an axis of the nearest that is known, of itself if none is."""
    count = known.shape[axis]
    here = np.arange(count).reshape([-1 if i == axis else 1 for i in range(known.ndim)])
    before = np.maximum.accumulate(np.where(known, here, -count), axis=axis)
    reverse = np.flip(np.where(known, here, 2 * count), axis=axis)
    after = np.flip(np.minimum.accumulate(reverse, axis=axis), axis=axis)
    nearest = np.where(here - before <= after - here, before, after)
    return np.where((nearest < 0) | (nearest >= count), here, nearest)


def paste(drawn: Frame, kept: Frame, hidden: Mask) -> Frame:
    """Returns `drawn` where it was hidden, and `kept` pixel for pixel everywhere else."""
    return np.where(hidden[..., None], drawn, kept)


def seam(video: Frame, hidden: Mask) -> dict[str, float | None]:
    """Measures how much neighbouring pixels differ across the border of what was hidden, and not.

    Returns PSNR in dB in time, from frame to frame, and in space, from pixel to pixel: `across` of
    which one was hidden, `kept` of which none was, `new` of which both were. None: no such pair
    differs.
    """
    numbers: dict[str, float | None] = {}
    for name, axes in (("time", (0,)), ("space", (1, 2))):
        sums, counts = np.zeros(3), np.zeros(3)
        for axis in axes:
            levels = np.moveaxis(video, axis, 0).astype(np.float32)
            squares = ((levels[1:] - levels[:-1]) ** 2).mean(-1)
            marks = np.moveaxis(hidden, axis, 0).astype(np.uint8)
            kinds = marks[1:] + marks[:-1]
            sums += np.bincount(kinds.ravel(), squares.ravel(), 3)
            counts += np.bincount(kinds.ravel(), minlength=3)
        for kind, what in enumerate(("kept", "across", "new")):
            numbers[f"{name}_{what}"] = psnr(sums[kind] / counts[kind]) if sums[kind] else None
    return numbers
