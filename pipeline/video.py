"""Decode, tile, write. The only place where pixel ranges change."""

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.errors import ConfigError, FrameError
from pipeline.files import replacing
from pipeline.frames import LARGEST_SIDE

Frame = NDArray[np.uint8]
MOTION_LEVELS = 24
"""A pixel moves if its darkest and brightest value in a clip are further apart than this."""
TIMED_FORMATS = ("flv", "matroska", "mov")
"""Containers whose header tells their length; FFmpeg guesses that of others from what is there."""
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Opens the part of an ASF or WMV header that tells its length."""
ASF_BROADCAST = 1
"""Flag of a stream whose length was not known when its header was written."""
MISSING_FRAMES, MISSING_SECONDS = 5, 0.25
"""A video may end this much earlier than declared; what is larger counts."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How videos become frame folders."""

    size: int = 128
    """Side of the square frames, in pixels."""
    tile: int | None = None
    """Side of the squares that the scene is cut into, in pixels of the video; null: one square
    from the centre. For a camera that stands still over a large scene."""
    tile_hop: int | None = None
    """Pixels from one tile to the next; null: tiles that touch."""
    fps: float | None = None
    """Frames per second to keep, never more than the video has; null: all."""
    filters: tuple[str, ...] = ()
    """FFmpeg filters that every frame goes through first, each as NAME or NAME=OPTIONS: deflicker
    for a lamp that flickers with the mains, atadenoise against noise. Tokens have to tell whatever
    changes from frame to frame, and models to predict it."""
    clip_frames: int | None = None
    """Frames per clip; null: each tile of a video is one clip."""
    min_motion: float = 0.0
    """Share of the video's pixels that must move for a clip to be kept; needs `clip_frames`."""
    test_share: float = 0.1
    """Last part of each video's time that goes to the test split."""
    image: Literal["png", "jpg"] = "png"
    """png is exact; jpg (quality 95) is a quarter of the size."""
    seed: int = 0
    """Draws the synthetic videos."""

    def __post_init__(self) -> None:
        for name in ("size", "tile", "tile_hop", "clip_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.size > LARGEST_SIDE:
            raise ValueError(f"size must be at most {LARGEST_SIDE}, got {self.size}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be above 0 and finite, got {self.fps}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share must be in [0, 1), got {self.test_share}.")
        if not 0 <= self.min_motion < 1:
            raise ValueError(f"min_motion must be in [0, 1), got {self.min_motion}.")
        if self.min_motion and self.clip_frames is None:
            raise ValueError("min_motion needs clip_frames: it looks at one clip at a time.")
        if self.tile_hop and not self.tile:
            raise ValueError("tile_hop needs tile.")


def read_video(
    path: Path, *, fps: float | None = None, filters: Sequence[str] = ()
) -> Iterator[Frame]:
    """Decodes any video that FFmpeg reads, frame by frame, to [H, W, 3]: see `ExtractConfig`.

    Raises FrameError, naming the file, when it is no video or breaks off, and ConfigError for a
    filter that FFmpeg does not take.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise FrameError(f"{path} has no video stream.")
            frames = _decode(container, path)
            if filters:
                frames = _filtered(frames, container.streams.video[0], filters)
            due = -math.inf
            for frame in frames:
                time = frame.time or 0.0
                if fps is not None and time < due - 1e-6:
                    continue
                due = max(due, time) + 1 / (fps or math.inf)
                pixels: Frame = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                yield pixels
    except av.FFmpegError as error:
        if isinstance(error, OSError) and not isinstance(error, av.error.InvalidDataError):
            reason = error.strerror
        else:
            reason = "damaged, or no video that FFmpeg knows"
        raise FrameError(f"{path} cannot be decoded: {reason}.") from None


def _decode(container: av.container.InputContainer, path: Path) -> Iterator[av.VideoFrame]:
    """Decodes the first video stream. Raises FrameError when it is damaged or breaks off."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    end, num_frames = 0.0, 0
    for packet in container.demux():  # Sound as well: it may run on after the picture.
        end = max(end, _end(packet))
        if packet.stream.index != stream.index:
            continue
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise FrameError(f"{path} is damaged at frame {num_frames}.")
            num_frames += 1
            yield frame
    declared = _declared_seconds(container, path)
    slack = max(MISSING_FRAMES / float(stream.average_rate or math.inf), MISSING_SECONDS)
    if num_frames and end < declared - slack:
        about = round(num_frames * declared / end) if end else "more"
        raise FrameError(f"{path} breaks off after {num_frames} of about {about} frames.")


def _filtered(
    frames: Iterator[av.VideoFrame], stream: av.VideoStream, filters: Sequence[str]
) -> Iterator[av.VideoFrame]:
    """Sends frames through FFmpeg filters, one after another."""
    graph = av.filter.Graph()
    chain = [graph.add_buffer(template=stream)]
    try:
        chain += [graph.add(*words.split("=", 1)) for words in filters]
        graph.link_nodes(*chain, graph.add("buffersink")).configure()
    except (ValueError, av.FFmpegError) as error:
        raise ConfigError(f"extract.filters: FFmpeg cannot use {list(filters)}: {error}.") from None
    for frame in itertools.chain(frames, [None]):
        graph.push(frame)
        with suppress(BlockingIOError, EOFError):  # It wants more frames, or has had all.
            while True:
                yield graph.vpull()


def _end(packet: "av.Packet[Any]") -> float:
    """Returns when a packet ends, in seconds; 0 for one without a time."""
    times = [time for time in (packet.pts, packet.dts) if time is not None]
    if not times or packet.time_base is None:
        return 0.0
    return float((max(times) + (packet.duration or 0)) * packet.time_base)


def _declared_seconds(container: av.container.InputContainer, path: Path) -> float:
    """Returns how long the header says that a file runs; 0 if it does not."""
    stream = container.streams.video[0]
    names = container.format.name.split(",")
    if "avi" in names and stream.average_rate:  # FFmpeg shortens its duration to what is there.
        return float(stream.frames / stream.average_rate)
    if "asf" in names:  # FFmpeg drops its duration if the file is not of the declared size.
        return _asf_seconds(path)
    if any(name in TIMED_FORMATS for name in names):
        return (container.duration or 0) / av.time_base
    return 0.0


def _asf_seconds(path: Path) -> float:
    """Reads the play duration of an ASF or WMV file; 0 if its header has none."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    start = header.find(ASF_PROPERTIES)
    if start < 0 or len(header) < start + 92:
        return 0.0
    ticks, _, preroll, flags = struct.unpack_from("<QQQI", header, start + 64)
    return 0.0 if flags & ASF_BROADCAST else max(0.0, ticks / 1e7 - preroll / 1e3)


def tiles(width: int, height: int, config: ExtractConfig) -> dict[str, tuple[int, int, int, int]]:
    """Returns the boxes (left, top, right, bottom) to cut out, by the suffix of their name."""
    if config.tile is None:
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return {"": (left, top, left + short, top + short)}
    hop = config.tile_hop or config.tile
    corners = itertools.product(
        range(0, height - config.tile + 1, hop), range(0, width - config.tile + 1, hop)
    )
    return {f"-x{x}-y{y}": (x, y, x + config.tile, y + config.tile) for y, x in corners}


def motion(frames: Sequence[Frame]) -> NDArray[np.bool_]:
    """Returns which pixels move, [H, W]: see `MOTION_LEVELS`."""
    brightest = np.maximum.reduce(frames).astype(np.int16)
    moves: NDArray[np.bool_] = (brightest - np.minimum.reduce(frames)).max(-1) > MOTION_LEVELS
    return moves


def moving_shapes(num_frames: int, size: int, *, seed: int) -> Iterator[Frame]:
    """Draws two or three shapes that drift and bounce over a shaded ground, as [size, size, 3]."""
    rng = np.random.default_rng(seed)
    scale = 4  # Drawn large and shrunk, so that edges are smooth and motion finer than a pixel.
    side = size * scale
    ground = np.linspace(rng.integers(60, 120), rng.integers(140, 220), side, dtype=np.float64)
    shade = np.repeat(ground[:, None], side, axis=1)
    image = np.stack([shade * tint for tint in rng.uniform(0.7, 1.0, 3)], axis=-1).astype(np.uint8)
    count = int(rng.integers(2, 4))
    place = rng.uniform(0.2, 0.8, (count, 2)) * side
    speed = rng.uniform(-0.05, 0.05, (count, 2)) * side
    radius = rng.uniform(0.08, 0.18, count) * side
    colours = rng.integers(0, 256, (count, 3))
    round_ones = rng.random(count) < 0.5
    for _ in range(num_frames):
        canvas = Image.fromarray(image)
        draw = ImageDraw.Draw(canvas)
        for (x, y), r, colour, is_round in zip(place, radius, colours, round_ones, strict=True):
            shape = draw.ellipse if is_round else draw.rectangle
            shape((x - r, y - r, x + r, y + r), fill=tuple(int(part) for part in colour))
        yield np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
        place = place + speed
        outside = (place < radius[:, None]) | (place > side - radius[:, None])
        inward = np.where(place < side / 2, np.abs(speed), -np.abs(speed))
        speed = np.where(outside, inward, speed)


def to_model(frames: Frame | Tensor) -> Tensor:
    """Turns bytes [..., T, H, W, 3] into float32 [..., 3, T, H, W] in -0.5 … 0.5."""
    video = torch.as_tensor(frames).movedim(-1, -4)
    return video.to(torch.float32) / 255 - 0.5


def to_bytes(video: Tensor, *, truncate: bool = False) -> Frame:
    """Turns float [..., 3, T, H, W] around -0.5 … 0.5 into bytes [..., T, H, W, 3], rounded.

    `truncate` drops the fraction instead, as the published code does.
    """
    levels = (video.float().clamp(-0.5, 0.5) + 0.5) * 255
    levels = (levels if truncate else levels.round()).to(torch.uint8)
    array: Frame = levels.movedim(-4, -1).cpu().numpy()
    return array


def published_bytes(frames: Frame) -> Frame:
    """Returns what real frames became in published measurements: 63 of 256 levels are one less."""
    return to_bytes(to_model(frames), truncate=True)


def write_mp4(path: Path, frames: Frame, *, fps: float, enlarge: int = 1) -> None:
    """Writes frames [T, H, W, 3] as H.264 that every browser plays (lossy: for eyes only)."""
    enlarged = frames.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = (side + side % 2 for side in enlarged.shape[1:3])  # yuv420p needs even sides.
    padded = np.pad(
        enlarged,
        ((0, 0), (0, height - enlarged.shape[1]), (0, width - enlarged.shape[2]), (0, 0)),
        mode="edge",
    )
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        rate = Fraction(fps).limit_denominator(1001)  # FFmpeg's own are fractions of small numbers.
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in padded:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_sheet(path: Path, videos: Sequence[Frame], *, columns: int, fps: float) -> None:
    """Writes videos [T, H, W, 3] side by side as one looping picture (.webp or .gif)."""
    blank = np.full_like(videos[0], 255)
    rows = -(-len(videos) // columns)
    grid = np.stack([*videos, *[blank] * (rows * columns - len(videos))])
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = rearrange(grid, "(r c) t h w d -> t (r h) (c w) d", c=columns)
    write_animation(path, sheet, fps=fps)


def write_animation(path: Path, frames: Frame, *, fps: float) -> None:
    """Writes frames [T, H, W, 3] as one looping picture (.webp or .gif)."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    settings = {"quality": 80, "method": 2} if path.suffix == ".webp" else {}
    with replacing(path) as temporary:
        first.save(
            temporary,
            format=path.suffix[1:],
            save_all=True,
            append_images=rest,
            duration=round(1000 / fps),
            loop=0,
            **settings,
        )
