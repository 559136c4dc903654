"""Videos by their packets alone: how many frames they have, and how fast they are."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.video.clock import Clock, Pace, at_rate
from pipeline.video.footage import TIMED_FORMATS, About, open_video, reading_errors
from pipeline.video.reader import check_end, end_of, tell_times

PICTURE_EACH = ("h264", "hevc", "vp9", "libvpx-vp9", "libdav1d", "av1", "mpeg4", "mjpeg", "prores")
"""Decoders that make one picture of each packet, in containers that hold no others."""


def count_frames(
    path: Path,
    *,
    fps: float | None = None,
    filters: Sequence[str] = (),
    as_stored: bool = False,
    about: About | None = None,
) -> int | None:
    """Counts the frames that `read_video` would yield by packets alone; None: only decoding tells.

    So it is where each packet is a picture, and none goes through filters. What is damaged inside a
    packet is not seen. `about` learns what times tell, as by `read_video`. Raises FrameError,
    naming the file, when it is no video or breaks off.
    """
    about = About() if about is None else about
    with open_video(path) as footage, reading_errors(path):
        names = footage.container.format.name.split(",")
        if filters or footage.stream.codec_context.name not in PICTURE_EACH:
            return None
        if not any(name in TIMED_FORMATS for name in names) or footage.may_restart:
            return None
        times: list[float | None] = []
        end, tick = 0.0, float(footage.stream.time_base or 0)
        for packet in footage.container.demux():
            end = max(end, end_of(packet))
            if packet.stream.index != footage.stream.index or not packet.size:
                continue
            if packet.is_corrupt or not (times or packet.is_keyframe):
                return None
            if not packet.is_discard:
                times.append(None if packet.pts is None else packet.pts * tick)
        check_end(footage, len(times), end, about)
        known = sorted(time for time in times if time is not None)
        if len(known) < len(times):
            return len(times) if fps is None else None
        clock, pace = Clock(footage.rate, tick), Pace(footage.rate, tick)
        shown = [(clock.mend(time), None) for time in known]
        for time, _ in shown:
            pace.see(time)
        tell_times(clock, pace, fps, about)
        if fps is None:
            return len(times)
        return sum(1 for _ in at_rate(shown, fps=fps, rate=footage.rate))
