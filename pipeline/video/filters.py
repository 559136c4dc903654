"""FFmpeg's filters: frames go in at one end of a graph, and come out at the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av

from pipeline.errors import ConfigError, FrameError

TICK = Fraction(1, 1_000_000)
"""Seconds, for the times of frames inside a graph of filters."""


def described(frame: av.VideoFrame) -> str:
    """Describes frames like this one to a graph of filters."""
    return (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={TICK}:"
        f"colorspace={frame.colorspace}:range={frame.color_range}"
    )


def graph(described: str, words: Sequence[str]) -> av.filter.Graph:
    """Links filters, each as NAME or NAME=OPTIONS."""
    graph = av.filter.Graph()
    added = [graph.add(*word.split("=", 1)) for word in words]
    graph.link_nodes(graph.add("buffer", described), *added, graph.add("buffersink")).configure()
    return graph


def pulled(
    graph: av.filter.Graph, path: Path, words: Sequence[str]
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yields what comes out of a graph until it wants more frames, or has had all."""
    while True:
        try:
            with filter_errors(path, words):
                frame = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        yield frame.time or 0.0, frame


@contextmanager
def filter_errors(path: Path, words: Sequence[str]) -> Iterator[None]:
    """Turns what FFmpeg says of frames that do not go through filters into one line."""
    try:
        yield
    except (BlockingIOError, EOFError):
        raise
    except (ValueError, av.FFmpegError) as error:
        raise FrameError(
            f"{path} does not go through the filters {list(words)}: {error}."
        ) from None


def check_filters(filters: Sequence[str]) -> None:
    """Raises ConfigError for a filter that FFmpeg does not take, whatever the video."""
    for word in filters:
        try:
            av.filter.Graph().add(*word.split("=", 1))
        except (ValueError, av.FFmpegError) as error:
            raise ConfigError(f"extract.filters: FFmpeg cannot use {word!r}: {error}.") from None
