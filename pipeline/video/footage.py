"""What a video file is: which of its streams to show, how it is to be turned, how long it runs."""

import math
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from errno import EINVAL
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

import av
from av.stream import Disposition

from pipeline.errors import FrameError
from pipeline.storage.files import printable

TIMED_FORMATS = ("flv", "matroska", "mov")
"""Containers whose header tells their length; FFmpeg guesses that of others from what is there."""
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Opens the part of an ASF or WMV header that tells its length."""
ASF_BROADCAST = 1
"""Flag of a stream whose length was not known when its header was written."""
REFUSED_FORMATS = frozenset(
    (
        *("hls", "dash", "concat", "imf", "webm_dash_manifest"),
        *("sdp", "rtsp", "rtp", "sap", "rtmp", "lavfi", "avisynth", "vapoursynth"),
        *("image2", "image2pipe", "alias_pix", "brender_pix"),
        *("tty", "bin", "xbin", "adf", "idf", "ffmetadata"),
    )
)
"""What is no file of one video: lists of other files, which would be followed wherever they lead,
networks, generators, and texts that FFmpeg would draw."""
NO_VIDEO = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that see transparency, where FFmpeg's own leave it out."""
TS_DISCONT = 0x0200
"""FFmpeg's flag of formats whose times may jump."""
ONE_LEVEL = Lock()
"""Guards the level of FFmpeg's logging, of which a process has one for all threads."""
UNKNOWN_LENGTH = "does not say how long it is: whether it was cut off could not be checked"


@dataclass
class About:
    """What is learned of a video while it is read."""

    rate: float | None = None
    """Frames a second of what was read."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a user should know, by kind."""


@dataclass(frozen=True)
class Footage:
    """A video file that was opened."""

    path: Path
    container: av.container.InputContainer
    stream: av.VideoStream
    others: int
    """Video streams that were not chosen; covers and thumbnails do not count."""

    @property
    def rate(self) -> float:
        """Nominal frames a second."""
        for rate in (self.stream.guessed_rate, self.stream.average_rate):
            if rate and math.isfinite(rate):
                return float(rate)
        return 25.0  # What FFmpeg takes when nothing is known.

    def decoder(self, threads: int) -> "av.VideoCodecContext":
        """Returns what decodes the packets of the stream; 0 threads: as many as are of use."""
        own = self.stream.codec_context
        decoder = own
        if self.stream.metadata.get("alpha_mode") == "1" and own.name in WITH_ALPHA:
            decoder = cast(Any, av.CodecContext.create(WITH_ALPHA[own.name], "r"))
            decoder.extradata = own.extradata
        decoder.thread_type = "AUTO"
        decoder.thread_count = threads
        return decoder

    @property
    def timed(self) -> bool:
        """Whether the container says when frames are shown: AVI only counts what it holds."""
        return "avi" not in self.container.format.name or not self.stream.codec_context.has_b_frames

    @property
    def may_restart(self) -> bool:
        """Whether this kind of container may go on with another clock: joined streams do."""
        return bool(self.container.format.flags & TS_DISCONT)

    def declared_seconds(self) -> float | None:
        """Returns how long the header says that a file runs; None if it does not."""
        names = self.container.format.name.split(",")
        if "avi" in names and self.stream.average_rate:  # FFmpeg shortens its duration.
            return float(self.stream.frames / self.stream.average_rate) or None
        if "asf" in names:  # FFmpeg drops its duration if the file is not of the declared size.
            return _asf_seconds(self.path) or None
        if "mov" in names and not self.stream.frames:
            return None  # Fragmented: its header was written before its end was known.
        if any(name in TIMED_FORMATS for name in names):
            return (self.container.duration or 0) / av.time_base or None
        return None

    def cropping(self) -> tuple[int, int, int, int] | None:
        """Returns what the container cuts off (left, right, top, bottom), in stored pixels.

        PyAV has no name for it, but FFmpeg's description of the file tells.
        """
        with ONE_LEVEL:  # Or a video beside this one lowers it before the description is made.
            level = av.logging.get_level()
            av.logging.set_level(av.logging.INFO)
            try:
                with av.logging.Capture():
                    described = cast(Any, self.container).dumps_format()  # Its types lack it.
            finally:
                av.logging.set_level(level)
        mine = re.search(
            rf"Stream #\d+:{self.stream.index}\b(.*?)(?=\n  Stream #|\Z)", described, re.DOTALL
        )
        found = mine and re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", mine[1], re.I)
        if not found:
            return None
        left, right, top, bottom = map(int, found.groups())
        return (left, right, top, bottom) if left or right or top or bottom else None


@cache
def _file_formats() -> str:
    """Lists the formats that may be opened."""
    return ",".join(
        name for name in sorted(av.formats_available) if REFUSED_FORMATS.isdisjoint(name.split(","))
    )


@contextmanager
def open_video(path: Path) -> Iterator[Footage]:
    """Opens a file and chooses the stream to show. Raises FrameError, naming the file."""
    options = {"format_whitelist": _file_formats(), "protocol_whitelist": "file"}
    with reading_errors(path), ExitStack() as opened:
        source: Any = f"file:{path.absolute()}"
        try:
            source.encode()
        except UnicodeEncodeError:  # PyAV names files in UTF-8 only.
            source = opened.enter_context(path.open("rb"))
        container = opened.enter_context(av.open(source, "r", container_options=options))
        yield Footage(path, container, *_choose(container, path))


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turns what FFmpeg says of a file that it cannot read into one line."""
    try:
        yield
    except av.FFmpegError as error:
        by_system = isinstance(error, OSError) and error.errno not in (None, EINVAL)
        if by_system and not isinstance(error, av.error.InvalidDataError):
            reason = error.strerror
        else:
            reason = "damaged, or no video that FFmpeg knows"
        raise FrameError(f"{printable(str(path))} cannot be decoded: {reason}.") from None


def _choose(container: av.container.InputContainer, path: Path) -> tuple[av.VideoStream, int]:
    """Returns the stream to show, and how many others there are. Covers are never chosen."""
    streams = [s for s in container.streams.video if not s.disposition & NO_VIDEO]
    if container.format.name.endswith("_pipe") and _is_one_image(container):
        raise FrameError(
            f"{path} is an image; fit-tokenizer and tokenize read folders of those (--frames)."
        )
    if not streams:
        what = "a cover picture, but no video" if container.streams.video else "no video"
        raise FrameError(f"{path} holds {what}.")
    best = max(streams, key=_ffmpeg_score)
    return best, len(streams) - 1


def _is_one_image(container: av.container.InputContainer) -> bool:
    """Says whether there is but one image: a camera may write one JPEG after another."""
    packets = (packet for packet in container.demux() if packet.size)
    alone = next(packets, None) is None or next(packets, None) is None
    container.seek(0)
    return alone


def _ffmpeg_score(stream: av.VideoStream) -> int:
    """Returns by what the program ffmpeg chooses a stream: its pixels, and whether it is marked."""
    return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)


def _asf_seconds(path: Path) -> float:
    """Reads the play duration of an ASF or WMV file; 0 if its header has none."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    start = header.find(ASF_PROPERTIES)
    if start < 0 or len(header) < start + 92:
        return 0.0
    ticks, _, preroll, flags = struct.unpack_from("<QQQI", header, start + 64)
    return 0.0 if flags & ASF_BROADCAST else max(0.0, ticks / 1e7 - preroll / 1e3)
