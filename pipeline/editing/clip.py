"""A video of any size, rate and length, brought to what a model's window shows of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.editing.shape import Mask, WindowShape
from pipeline.errors import FrameError
from pipeline.frames.images import Frame, crop_resize, read_images
from pipeline.size import centre, check_size
from pipeline.video.footage import About
from pipeline.video.reader import read_video

MOST_BYTES = 1 << 30
"""Of the frames of a clip, which are held in memory."""
LARGEST_CROP = 4
"""Times the sides of a video that what is seen may have: the rest of it is to be drawn."""

Box = tuple[int, int, int, int]
"""Left, top, width, height."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video as the model is to see them, and where they come from."""

    name: str
    frames: Frame
    """Pixels [T, H, W, 3]."""
    fps: float | None
    seen: tuple[int, int, int, int]
    """Left, top, right and bottom of what the frames show, in pixels of the video; what of it lies
    outside the video is black, and `outside`."""
    video_size: tuple[int, int]
    """Height and width of the video."""
    said: tuple[str, ...]
    """What was done to it."""

    @property
    def outside(self) -> Mask:
        """Pixels [H, W] of the frames that show anything from outside the video."""
        height, width = self.video_size
        left, top, right, bottom = self.seen
        inside = np.zeros((bottom - top, right - left), np.bool_)
        inside[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)] = True
        return _resized(~inside, self.frames.shape[1:3])

    def box(self, box: Box) -> Mask:
        """Returns the pixels [H, W] that a box of the video touches. Raises FrameError outside."""
        x, y, width, height = box
        down, across = self.video_size
        if x < 0 or y < 0 or x + width > across or y + height > down:
            raise FrameError(
                f"box {_text(box)} lies outside {self.name}, which is {across}x{down} pixels; "
                "write x,y,width,height, from the left upper corner on."
            )
        marked = np.zeros((down, across), np.bool_)
        marked[y : y + height, x : x + width] = True
        return self._shown(marked, f"box {_text(box)}")

    def mask(self, path: Path) -> Mask:
        """Returns the pixels [H, W] that are white, or lighter than grey, in a picture of the size
        of the video. Raises FrameError if it is none, or marks nothing.
        """
        (image,) = read_images([str(path)])
        down, across = self.video_size
        if image.size != (across, down):
            raise FrameError(
                f"{path} is {image.width}x{image.height} pixels, but {self.name} is "
                f"{across}x{down}; a mask has the size of its video."
            )
        marked = np.asarray(image.convert("L")) > 127
        if not marked.any():
            raise FrameError(f"{path} is black, so there is nothing to draw; paint that white.")
        return self._shown(marked, str(path))

    def _shown(self, marked: Mask, what: str) -> Mask:
        """Returns what the frames show of marks on the whole video."""
        left, top, right, bottom = self.seen
        whole = Image.fromarray(marked.astype(np.uint8))
        shown = np.asarray(whole.crop((left, top, right, bottom))) > 0
        if not shown.any():
            raise FrameError(
                f"{what} marks nothing of what the model sees of {self.name}: "
                f"{right - left}x{bottom - top} pixels at {left},{top}. Give another --crop."
            )
        return _resized(shown, self.frames.shape[1:3])


def read_clip(
    path: Path, shape: WindowShape, reading: Mapping[str, Any], *, crop: Box | None = None
) -> Clip:
    """Reads a video, cut out of the box `crop` in the middle and resized as the model's frames are.

    `reading` says how, as `read_video` is told, but for the rate, which is the model's, or less, if
    that is known. A crop may reach beyond the video. Raises FrameError if it is none, or holds too
    much.
    """
    size, about = check_size("size", shape.size), About()
    most = MOST_BYTES // (3 * shape.size[0] * shape.size[1])
    frames: list[Frame] = []
    seen, video_size = (0, 0, 0, 0), (0, 0)
    for frame in read_video(
        path, **{**reading, "fps": shape.fps or reading.get("fps")}, about=about
    ):
        if not frames:
            video_size = frame.shape[0], frame.shape[1]
            seen = _seen(path, video_size, shape, crop)
        if len(frames) == most:
            raise FrameError(f"{path} has more than {most:,} frames, too many at once; cut it.")
        frames.append(np.asarray(crop_resize(Image.fromarray(frame).crop(seen), size)))
    if not frames:
        raise FrameError(f"{path} holds no frame.")
    left, top, right, bottom = seen
    height, width = shape.size
    rate = "" if about.rate is None else f", {about.rate:.5g} a second"
    if about.rate and shape.fps and about.rate < shape.fps * 0.99:
        rate += f", where the model knows {shape.fps:.5g}"
    said = (
        f"{path}: {len(frames)} frames{rate}; of its {video_size[1]}x{video_size[0]} pixels "
        f"{right - left}x{bottom - top} at {left},{top} are seen, as {width}x{height}",
        *(f"{path} {note}" for note in about.notes.values()),
    )
    return Clip(str(path), np.stack(frames), about.rate, seen, video_size, said)


def _seen(
    path: Path, video_size: tuple[int, int], shape: WindowShape, crop: Box | None
) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of what of `crop` has the shape of a frame."""
    height, width = video_size
    x, y, across, down = crop or (0, 0, width, height)
    beside = min(across, down) < 1 or x + across <= 0 or y + down <= 0 or x >= width or y >= height
    if beside or across > LARGEST_CROP * width or down > LARGEST_CROP * height:
        raise FrameError(
            f"--crop {_text((x, y, across, down))} shows {'nothing' if beside else 'too little'} "
            f"of {path}, which is {width}x{height} pixels."
        )
    left, top, right, bottom = centre(across, down, shape.size)
    return x + left, y + top, x + right, y + bottom


def _resized(marked: Mask, size: tuple[int, int]) -> Mask:
    """Returns the pixels of a picture of another size that anything marked touches."""
    image = Image.fromarray(marked.astype(np.float32))
    touched: Mask = np.asarray(image.resize(size[::-1], Image.Resampling.BOX)) > 0
    return touched


def _text(box: Box) -> str:
    return ",".join(map(str, box))
