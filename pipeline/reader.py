"""Decodes videos frame by frame, with FFmpeg."""

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.errors import ConfigError, FrameError
from pipeline.images import Frame

TIMED_FORMATS = ("flv", "matroska", "mov")
"""Containers whose header tells their length; FFmpeg guesses that of others from what is there."""
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Opens the part of an ASF or WMV header that tells its length."""
ASF_BROADCAST = 1
"""Flag of a stream whose length was not known when its header was written."""
MISSING_FRAMES, MISSING_SECONDS = 5, 0.25
"""A video may end this much earlier than declared; what is larger counts."""


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
