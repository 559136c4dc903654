"""What is to be drawn: behind or before a clip, between two, or inside of one."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.editing.clip import Clip
from pipeline.editing.shape import Mask, WindowShape, choose_span
from pipeline.errors import ConfigError, FrameError
from pipeline.frames.images import Frame


@dataclass(frozen=True)
class Edit:
    """A video, and which of its pixels are to be drawn anew."""

    frames: Frame
    """Pixels [T, H, W, 3]; what is hidden is of no account."""
    hidden: Mask
    """Pixels [T, H, W]: those asked for, and the rest of their tokens."""
    asked: Mask
    """Pixels [T, H, W] that were asked for."""
    span: range
    """Frames that the model sees; the last ones may come after the video, and are dropped."""
    new: Mask
    """Tokens [t, h, w] of these frames that are drawn."""
    context: int
    """Latent frames that are known where a window goes on from another."""
    fps: float | None
    said: tuple[str, ...]

    def fingerprint(self) -> str:
        """Returns a SHA-256 of all that the result depends on, but for the model."""
        digest = hashlib.sha256(f"{self.span} {self.context} {self.fps}".encode())
        for array in (self.frames, self.hidden):
            digest.update(f"{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @cached_property
    def seen(self) -> tuple[Frame, Mask]:
        """Frames of the span, the last one repeated where the video ends, and what is hidden."""
        beyond = ((0, max(0, self.span.stop - len(self.frames))), (0, 0), (0, 0))
        part = slice(self.span.start, self.span.stop)
        frames = np.pad(self.frames[part], (*beyond, (0, 0)), mode="edge")
        hidden = np.pad(self.hidden[part], beyond, constant_values=True)
        return frames, hidden


def plan_edit(
    frames: Frame,
    asked: Mask,
    shape: WindowShape,
    *,
    context: int | None,
    fps: float | None,
    said: tuple[str, ...],
) -> Edit:
    """Lays the model's tokens over a video, so that as few as can be hold what is asked for.

    `context` counts latent frames; None: half a window. Raises ConfigError if nothing would be left
    or nothing is asked for.
    """
    whole = np.flatnonzero(asked.any((1, 2)))
    if not len(whole):
        raise ConfigError("nothing is asked for, so there is nothing to draw.")
    latent, total = shape.grid[0], len(frames)
    context = context or max(1, latent // 2)
    span = choose_span(range(whole[0], whole[-1] + 1), total, shape, context)
    beyond = ((0, max(0, span.stop - total)), (0, 0), (0, 0))
    new = shape.to_tokens(np.pad(asked[span.start : span.stop], beyond, constant_values=False))
    hidden = asked.copy()
    hidden[span.start : span.stop] = shape.to_pixels(new)[: total - span.start]
    edit = Edit(frames, hidden, asked, span, new, context, fps, said)
    if new.all():
        each, down, across = shape.downsample
        raise ConfigError(
            f"all would be drawn and nothing kept, in tokens of {each} frames of {across}x{down} "
            "pixels; `mebt sample` draws new videos."
        )
    return replace(edit, said=(*said, _snapped(edit, shape)))


def _snapped(edit: Edit, shape: WindowShape) -> str:
    """Says what is drawn, and what was asked for if that is less."""
    drawn, asked = _extent(edit.hidden), _extent(edit.asked)
    each, down, across = shape.downsample
    said = f"drawn anew: {drawn}, {edit.new.sum():,} of {edit.new.size:,} tokens"
    if (edit.hidden != edit.asked).any():
        said += f"; asked for: {asked}; a token is of {each} frames of {across}x{down} pixels"
    return said


def _extent(pixels: Mask) -> str:
    """Says which frames and pixels are marked."""
    frames, rows, columns = (np.flatnonzero(pixels.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    (first, last), (top, bottom), (left, right) = ((m[0], m[-1]) for m in (frames, rows, columns))
    whole = (bottom - top + 1, right - left + 1) == pixels.shape[1:]
    place = "" if whole else f" at {left},{top}"
    share = pixels.sum((1, 2)).max() / ((bottom - top + 1) * (right - left + 1))
    place += "" if share == 1 else f" ({share:.0%} of them)"
    return f"frames {first}:{last + 1}, {right - left + 1}x{bottom - top + 1} pixels{place}"


def continued(
    clip: Clip, num_new: int, shape: WindowShape, *, kept: int | None = None, backward: bool = False
) -> Edit:
    """Plans so many new frames behind a clip, or before it, which are then whole latent frames.

    The model sees the last `kept` frames, in whole latent frames, or first; None: half a window.
    Raises FrameError if the clip has not as many.
    """
    _check_new(num_new)
    each, length = shape.downsample[0], len(clip.frames)
    context = _context(kept, shape)
    needed = each if kept is None else (context or 0) * each
    if shape.causal and not backward:  # The first of the window is of one frame.
        needed -= each - 1
    if length < needed:
        raise FrameError(
            f"{clip.name} has {length} frames, but {needed} of them are to be kept and gone on "
            "from."
        )
    said = clip.said
    if backward and (whole := shape.frames(shape.latents(num_new))) != num_new:
        said += (f"{whole} new frames, not {num_new}: whole latent frames are drawn",)
        num_new = whole
    ends = (num_new, 0) if backward else (0, num_new)
    frames = np.pad(clip.frames, (ends, (0, 0), (0, 0), (0, 0)), mode="edge")
    asked = np.ones(frames.shape[:3], np.bool_)
    asked[ends[0] : ends[0] + length] = False
    return plan_edit(frames, asked, shape, context=context, fps=clip.fps, said=said)


def between(a: Clip, b: Clip, num_new: int, shape: WindowShape, *, kept: int | None = None) -> Edit:
    """Plans so many new frames from the end of one clip to the begin of another.

    They become whole latent frames. The model sees up to `kept` frames of each, as `continued`.
    Raises FrameError if a clip has too few frames, or another rate than the other.
    """
    _check_new(num_new)
    each = shape.downsample[0]
    for clip, least in ((a, 1 if shape.causal else each), (b, each)):
        if len(clip.frames) < least:
            raise FrameError(
                f"{clip.name} has {len(clip.frames)} frames, but {least} of them are to be kept."
            )
    if a.fps and b.fps and abs(a.fps / b.fps - 1) > 0.01:
        raise FrameError(
            f"{a.name} plays at {a.fps:.5g} frames a second, but {b.name} at {b.fps:.5g}; bring "
            "them to one rate."
        )
    said = (*a.said, *b.said)
    if (whole := -(-num_new // each) * each) != num_new:
        said += (f"{whole} new frames, not {num_new}: whole latent frames are drawn",)
    gap = a.frames[-1:].repeat(whole, axis=0)
    frames = np.concatenate([a.frames, gap, b.frames])
    asked = np.zeros(frames.shape[:3], np.bool_)
    asked[len(a.frames) : len(a.frames) + whole] = True
    return plan_edit(frames, asked, shape, context=_context(kept, shape), fps=a.fps, said=said)


def inside(
    clip: Clip, shape: WindowShape, *, frames: slice, pixels: Mask | None, every: int | None = None
) -> Edit:
    """Plans to draw pixels [H, W] anew, or all, in some frames, and what lies outside the video.

    With `every`, one latent frame of so many is kept. Raises FrameError if there are no such
    frames.
    """
    length = len(clip.frames)
    start, stop = frames.start or 0, length if frames.stop is None else frames.stop
    if not 0 <= start < stop <= length:
        raise FrameError(
            f"frames {start}:{stop} are not in {clip.name}, which has {length}: from 0 on, and the "
            "last one is left out."
        )
    if frames.step not in (None, 1):
        raise FrameError(f"frames {start}:{stop}:{frames.step} leave out some; give every.")
    if pixels is not None and pixels.shape != clip.frames.shape[1:3]:
        raise FrameError(
            f"a mask of {list(pixels.shape)} pixels is none of the frames of {clip.name}, which "
            f"are {list(clip.frames.shape[1:3])}."
        )
    asked = np.zeros(clip.frames.shape[:3], np.bool_)
    chosen = np.arange(start, stop)
    if every is not None:
        latent = np.asarray([shape.latents(number + 1) - 1 for number in chosen])
        chosen = chosen[latent % every != 0]
    if pixels is not None or every is not None or (stop - start < length):
        asked[chosen] = True if pixels is None else pixels
    asked |= clip.outside
    return plan_edit(clip.frames, asked, shape, context=None, fps=clip.fps, said=clip.said)


def _check_new(num_new: int) -> None:
    if num_new < 1:
        raise ConfigError(f"{num_new} new frames are none to draw; at least 1.")


def _context(kept: int | None, shape: WindowShape) -> int | None:
    """Returns how many latent frames hold so many kept ones. Raises ConfigError if all would."""
    if kept is None:
        return None
    if kept < 1:
        raise ConfigError(f"{kept} kept frames are none to go on from; at least 1.")
    latent = -(-kept // shape.downsample[0])
    if latent >= shape.grid[0]:
        raise ConfigError(
            f"{kept} kept frames leave no room for new ones: a window has "
            f"{shape.frames(shape.grid[0])}."
        )
    return latent
