"""Videos frame by frame, as players show them: upright, in square pixels, in the colours meant."""

import math
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

from pipeline.errors import FrameError
from pipeline.frames.images import Frame
from pipeline.video.clock import Clock, Pace, at_rate
from pipeline.video.filters import TICK, described, filter_errors, graph, pulled
from pipeline.video.footage import (
    UNKNOWN_LENGTH,
    About,
    Footage,
    open_video,
    reading_errors,
)

MISSING_FRAMES, MISSING_SECONDS = 5, 0.25
"""A video may end this much earlier than declared; what is larger counts."""
MAX_ASPECT = 3.0
"""Width by height of the widest pixel that is believed, or the inverse: half D1 at 16:9 has 2.9."""
NEARLY_SQUARE = 0.01
"""Pixels this close to square are left alone: to resize them would blur more than it mends."""
RIGHT_ANGLE = 0.99
"""Cosine of the largest angle, 8 degrees, that a display matrix may be off a quarter turn."""
HDR: dict[int, str] = {ColorTrc.SMPTE2084: "HDR (PQ)", ColorTrc.ARIB_STD_B67: "HDR (HLG)"}
WIDE: dict[int, str] = {
    ColorPrimaries.BT2020: "the colours of BT.2020",
    ColorPrimaries.SMPTE431: "the colours of DCI-P3",
    ColorPrimaries.SMPTE432: "the colours of Display P3",
}
MENDED = {
    "missing": "were missing",
    "ran backwards": "ran backwards",
    "started again": "started again",
}


def read_video(
    path: Path,
    *,
    fps: float | None = None,
    filters: Sequence[str] = (),
    as_stored: bool = False,
    threads: int = 0,
    about: About | None = None,
) -> Iterator[Frame]:
    """Decodes any video that FFmpeg reads, frame by frame, to [H, W, 3]: see `ExtractConfig`.

    Rotation, mirroring, pixel aspect and the container's crop are applied unless `as_stored`; HDR
    and wide gamuts are mapped to BT.709; what is transparent is shown over black. `about` learns
    what there is to say of the video. Raises FrameError, naming the file, when it is no video,
    breaks off, or does not go through the filters.
    """
    about = About() if about is None else about
    with open_video(path) as footage, reading_errors(path):
        if footage.others:
            about.notes["streams"] = (
                f"shows stream {footage.stream.index}, the best of {footage.others + 1} videos"
            )
        tick = float(footage.stream.time_base or 0)
        clock = Clock(footage.rate, tick, restarts=footage.may_restart)
        pace = Pace(footage.rate, tick)
        timed = (
            (clock.mend(frame.time if footage.timed else None), frame)
            for frame in _decode(footage, threads, about)
        )
        mapped = _in_common_colours(timed, about)
        shown = _paced(_filtered(mapped, footage, as_stored, filters, about), pace)
        if fps is not None:
            shown = at_rate(shown, fps=fps, rate=footage.rate)
        last, pixels, num_repeated = None, np.empty(0, np.uint8), 0
        for _, frame in shown:
            if frame is last:
                num_repeated += 1
            else:
                last, pixels = frame, _pixels(frame, about)
            yield pixels
        if num_repeated:
            about.notes["repeated"] = (
                f"has uneven times: {num_repeated} frames are shown again, to keep its speed"
            )
        tell_times(clock, pace, fps, about)


def read_stretch(
    path: Path,
    start: float,
    stop: float,
    *,
    filters: Sequence[str] = (),
    as_stored: bool = False,
    threads: int = 0,
    about: About,
) -> Iterator[Frame]:
    """Decodes the frames of a video whose times are from `start` up to `stop`, in seconds.

    It begins at the last key frame before, so that a file of many stretches is not read anew for
    each. Frames are shown, and errors raised, as by `read_video`; times are believed.
    """
    with open_video(path) as footage, reading_errors(path):
        tick = float(footage.stream.time_base or 1)
        footage.container.seek(max(0, math.floor(start / tick)), stream=footage.stream)
        pace = Pace(footage.rate, tick)
        timed = _paced(_between(footage, threads, start, stop), pace)
        shown = _filtered(_in_common_colours(timed, about), footage, as_stored, filters, about)
        for _, frame in shown:
            yield _pixels(frame, about)
        about.rate = pace.rate()


def _between(
    footage: Footage, threads: int, start: float, stop: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    decoder = footage.decoder(threads)
    for packet in footage.container.demux(footage.stream):
        for frame in decoder.decode(packet):
            if frame.is_corrupt:
                raise FrameError(f"{footage.path} is damaged near second {frame.time}.")
            if frame.time is not None and frame.time >= stop:
                return
            if frame.time is not None and frame.time >= start:
                yield frame.time - start, frame


def _paced(
    frames: Iterable[tuple[float, av.VideoFrame]], pace: Pace
) -> Iterator[tuple[float, av.VideoFrame]]:
    for time, frame in frames:
        pace.see(time)
        yield time, frame


def tell_times(clock: Clock, pace: Pace, fps: float | None, about: About) -> None:
    """Says at the end of a video what was wrong with its times, and how fast it is."""
    num_frames = pace.gaps.total() + 1
    for what, count in clock.mended.items():
        if count:
            about.notes[f"times {what}"] = (
                f"has {count} times of {num_frames} frames that {MENDED[what]}: mended from its "
                f"rate, {clock.rate:.5g} frames a second"
            )
    about.rate = pace.rate() if fps is None else min(fps, clock.rate)
    if fps is None and (uneven := pace.uneven()):
        about.notes["variable rate"] = f"has a variable rate: {uneven}; extract.fps evens it out"


def _decode(footage: Footage, threads: int, about: About) -> Iterator[av.VideoFrame]:
    """Decodes the chosen stream. Raises FrameError when it is damaged or breaks off."""
    path, decoder = footage.path, footage.decoder(threads)
    size: tuple[int, int] | None = None
    end, num_frames, broken = 0.0, 0, False
    for packet in footage.container.demux():  # Sound as well: it may run on after the picture.
        end = max(end, end_of(packet))
        if packet.stream.index != footage.stream.index:
            continue
        try:
            frames = decoder.decode(packet)
        except av.error.InvalidDataError:
            if broken or not num_frames:
                raise
            broken, frames = True, []  # Of a video that breaks off, this is half a packet.
        for frame in frames:
            if frame.is_corrupt or broken:
                raise FrameError(f"{path} is damaged at frame {num_frames}.")
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise FrameError(
                    f"{path} changes its size from {size[0]}x{size[1]} to "
                    f"{frame.width}x{frame.height} at frame {num_frames}."
                )
            num_frames += 1
            yield frame
    check_end(footage, num_frames, end, about)
    if broken:
        raise FrameError(f"{path} is damaged at frame {num_frames}.")


def check_end(footage: Footage, num_frames: int, end: float, about: About) -> None:
    """Raises FrameError if a video ended, after so many seconds, before its header says."""
    declared = footage.declared_seconds()
    slack = max(MISSING_FRAMES / footage.rate, MISSING_SECONDS)
    if declared is None:
        about.notes["length"] = UNKNOWN_LENGTH
    elif num_frames and end < declared - slack:
        about_all = round(num_frames * declared / end) if end else "more"
        raise FrameError(
            f"{footage.path} breaks off after {num_frames} of about {about_all} frames."
        )


def end_of(packet: "av.Packet[Any]") -> float:
    """Returns when a packet ends, in seconds; 0 for one without a time."""
    times = [time for time in (packet.pts, packet.dts) if time is not None]
    if not times or packet.time_base is None:
        return 0.0
    return float((max(times) + (packet.duration or 0)) * packet.time_base)


def _filtered(
    frames: Iterable[tuple[float, av.VideoFrame]],
    footage: Footage,
    as_stored: bool,
    filters: Sequence[str],
    about: About,
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Sends frames through what is needed to show them, and then through the user's filters."""
    chain: av.filter.Graph | None = None
    frames = iter(frames)
    for time, frame in frames:
        if chain is None:
            if frame.interlaced_frame and not filters:
                about.notes["interlaced"] = (
                    "is interlaced: lines of two moments alternate where something moves; "
                    "extract.filters: [bwdif=mode=send_frame] would join them"
                )
            upright = [] if as_stored else _upright(footage, frame, about)
            words = [*upright, *filters]
            if not words:
                yield time, frame
                yield from frames
                return
            with filter_errors(footage.path, words):
                chain = graph(described(frame), words)
        frame.pts, frame.time_base = round(time / TICK), TICK
        with filter_errors(footage.path, words):
            chain.push(frame)
        yield from pulled(chain, footage.path, words)
    if chain is not None:
        with filter_errors(footage.path, words):
            chain.push(None)
        yield from pulled(chain, footage.path, words)


def _upright(footage: Footage, frame: av.VideoFrame, about: About) -> list[str]:
    """Returns the filters that show a frame as the file says: cropped, square, turned."""
    words = []
    if crop := footage.cropping():
        left, right, top, bottom = crop
        width, height = frame.width - left - right, frame.height - top - bottom
        if width < 1 or height < 1:
            raise FrameError(f"{footage.path} says to cut off {crop}, which leaves nothing.")
        words.append(f"crop={width}:{height}:{left}:{top}:exact=1")
        about.notes["cropped"] = f"cropped to {width}x{height}, as the file says"
    aspect = float(footage.stream.sample_aspect_ratio or 1)
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        about.notes["aspect"] = f"says that pixels are {aspect:.3g} times as wide as high: ignored"
    elif abs(aspect - 1) > NEARLY_SQUARE:
        words += [f"scale=round(iw*{aspect}):ih", "setsar=1"]
        about.notes["aspect"] = f"stretched {aspect:.4g} times in width: its pixels are not square"
    return words + _turned(frame, about)


def _turned(frame: av.VideoFrame, about: About) -> list[str]:
    """Returns the filters that turn and mirror a frame as its display matrix says."""
    data = cast(Any, frame.side_data).get("DISPLAYMATRIX")
    if data is None:
        return []
    # x' = a x + c y, y' = b x + d y, in units of 1/65536.
    a, b, _, c, d, *_ = (number / (1 << 16) for number in struct.unpack("=9i", bytes(data)))
    across, down = (c, b) if abs(b) > abs(a) else (a, d)
    transposed = ["transpose=cclock_flip"] if abs(b) > abs(a) else []
    if min(abs(across), abs(down)) < RIGHT_ANGLE * math.hypot(a, b, c, d) / math.sqrt(2):
        about.notes["turned"] = "says that it is shown at an odd angle: left as it is"
        return []
    words = [*transposed, *(["hflip"] if across < 0 else []), *(["vflip"] if down < 0 else [])]
    if words:
        about.notes["turned"] = "turned or mirrored, as the file says"
    return words


def _in_common_colours(
    frames: Iterable[tuple[float, av.VideoFrame]], about: About
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Maps HDR and wide gamuts to what a common screen shows (BT.709)."""
    for time, frame in frames:
        what = HDR.get(frame.color_trc) or WIDE.get(frame.color_primaries)
        if what is not None:
            about.notes["colours"] = f"is in {what}: mapped to BT.709, as a common screen shows it"
            colours = (frame.color_trc, frame.color_primaries)
            mapper = _mapper(described(frame), colours, threading.get_ident())
            mapper.push(frame)
            frame = mapper.vpull()
        yield time, frame


@lru_cache(16)
def _mapper(kind: str, colours: tuple[int, int], thread: int) -> av.filter.Graph:
    """Makes what maps the colours of one frame after another; FFmpeg takes seconds to begin.

    So all videos of one kind share it: only with others of their `thread`, it is not safe.
    """
    to = "out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:intent=perceptual"
    return graph(kind, [f"scale={to}", "format=gbrp"])


def _pixels(frame: av.VideoFrame, about: About) -> Frame:
    """Converts a frame to RGB; what is transparent is shown over black."""
    if not frame.format.has_palette and not any(part.is_alpha for part in frame.format.components):
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    pixels = frame.to_ndarray(format="rgba")
    rgb, alpha = pixels[..., :3], pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    about.notes["transparent"] = "is transparent in places: shown over black"
    return ((rgb * alpha + 127) // 255).astype(np.uint8)
