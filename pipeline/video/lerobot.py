"""LeRobot data sets, version 3: an episode of a camera is a video, a stretch of a longer file.

Tables hold numbers for each of its frames, such as `action` and `observation.state`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import fingerprint
from pipeline.errors import FrameError
from pipeline.frames.images import Frame
from pipeline.frames.tars import Rejected
from pipeline.rates import DIFFERENT
from pipeline.video.clips import Source
from pipeline.video.episodes import INFO, TABLE, list_episodes, read_table
from pipeline.video.footage import About
from pipeline.video.reader import read_stretch
from pipeline.video.tiles import ExtractConfig

Hashes = Callable[[Sequence[Path]], Sequence[str | FrameError]]
"""Returns the hash of each file, or why it cannot be used."""


def find_episodes(
    folder: Path, config: ExtractConfig, cameras: Sequence[str], hashes: Hashes
) -> tuple[list[Source], list[Rejected]]:
    """Lists every episode of these cameras as a video: see `list_episodes`."""
    if config.fps is not None:
        raise FrameError(
            f"extract.fps would part frames of {folder} from their states; thin them by "
            "tokenize.stride."
        )
    episodes = list_episodes(folder, cameras)
    found = dict(zip(episodes.files, hashes(episodes.files), strict=True))
    sources: list[Source] = []
    rejected = list(episodes.rejected)
    for name, camera, row in episodes.videos():
        number, length = row["episode_index"], row["length"]
        path, data = row["files"][camera], row["files"].get(TABLE)
        content = [found[path], row[camera], length, data and found[data], episodes.rate]
        if wrong := next((c for c in content if isinstance(c, FrameError)), None):
            rejected.append(Rejected(name, str(wrong)))
            continue
        numbers = None
        if data:
            numbers = partial(read_states, data, number, length, episodes.states, episodes.rate)
        read = partial(_read, path, row[camera], length, episodes.rate, config, numbers)
        about = {"source": f"{folder}: episode {number}, {camera}", "caption": _caption(row)}
        sources.append(Source(name, fingerprint(content), read, None, about, numbers))
    return sources, rejected


def _caption(row: Mapping[str, Any]) -> str:
    tasks = row["tasks"] if isinstance(row["tasks"], list) else [row["tasks"]]
    return " ".join(str(task) for task in tasks if task is not None)


def _read(
    path: Path,
    span: tuple[float, float],
    length: int,
    rate: float,
    config: ExtractConfig,
    states: Callable[[], pa.Table] | None,
    *,
    about: About,
    threads: int,
) -> Iterator[Frame]:
    """Decodes an episode. Raises FrameError unless it has the frames, and the rate, it says."""
    if states:
        states()  # What is wrong with them is wrong with the episode.
    early = 0.5 / rate  # Times are rounded: half a frame on either side.
    stretch = (span[0] - early, span[1] - early)
    count = 0
    frames = read_stretch(
        *(path, *stretch),
        filters=config.filters,
        as_stored=config.as_stored,
        threads=threads,
        about=about,
    )
    for frame in frames:
        count += 1
        yield frame
    if count != length:
        raise FrameError(
            f"{path} holds {count} frames from second {span[0]:g} to {span[1]:g}, but the episode "
            f"has {length}."
        )
    shown = f"{path} shows frames from second {span[0]:g} to {span[1]:g}"
    _check_rate(shown, about.rate, rate, length)
    about.rate = rate


def _check_rate(what: str, found: float | None, rate: float, length: int) -> None:
    """Raises FrameError unless frames follow one another as fast as the data set says.

    Of few frames that is hard to tell: ends that are a frame early or late are let pass.
    """
    steps = length - 1
    if not found or abs(steps * rate / found - steps) > max(1, (DIFFERENT - 1) * steps):
        raise FrameError(
            f"{what} at {found or 0:.5g} a second, but {INFO} says fps {rate:g}; correct what is "
            "wrong."
        )


@lru_cache(2)
def _numbers(path: Path, names: tuple[str, ...], _: int) -> tuple[pa.Table, dict[int, range]]:
    """Returns the numbers of a file, by episode and frame, and the rows of each episode.

    The last number changes with the file. A file holds many episodes, so it is kept for the next.
    """
    table = read_table(path, ["episode_index", "frame_index", "timestamp", *names])
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    episodes, first = np.unique(table["episode_index"].to_numpy(), return_index=True)
    ends = [*first[1:].tolist(), len(table)]
    return table, dict(zip(episodes.tolist(), map(range, first.tolist(), ends), strict=True))


def read_states(
    path: Path, episode: int, length: int, names: Sequence[str], rate: float
) -> pa.Table:
    """Returns time and numbers of each frame of an episode: columns `time`, then `names`.

    Raises FrameError unless there are so many, `rate` of them a second, and all are numbers: finite
    or not known, and as many of a name in each frame.
    """
    try:
        table, rows = _numbers(path, tuple(names), path.stat().st_mtime_ns)
        found = rows.get(episode, range(0))
        mine = table.slice(found.start, len(found))
        if len(mine) != length:
            raise FrameError(
                f"{path} has {len(mine)} rows of episode {episode}, which has {length}."
            )
        if mine["frame_index"].to_pylist() != list(range(length)):
            raise FrameError(f"{path} does not number the frames of episode {episode} 0, 1, 2 ….")
        times = pc.cast(mine["timestamp"], pa.float64())
        seconds = times.to_numpy()
        if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
            raise FrameError(f"{path} does not time the frames of episode {episode} in order.")
        if length > 1:
            first, last = seconds[[0, -1]].tolist()
            timed = (length - 1) / (last - first)
            _check_rate(f"{path} times the frames of episode {episode}", timed, rate, length)
        where = f"{path}: of episode {episode}"
        columns = [times, *(_lists(f"{where}, {name}", mine[name]) for name in names)]
    except (pa.ArrowException, TypeError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise FrameError(f"{path} holds other than numbers of each frame: {said}.") from None
    return pa.table(columns, names=["time", *names])


def _lists(what: str, column: pa.ChunkedArray) -> pa.Array:
    """Returns a list of float32 for each frame. Raises FrameError if one is other than the rest.

    Numbers that are null or NaN are not known, and neither are those of a frame of null.
    """
    inside = getattr(column.type, "value_type", None)
    if inside is None or hasattr(inside, "value_type"):  # One number; rows of some.
        values = column.to_pylist()
        flat = [None if value is None else np.ravel(value).tolist() for value in values]
        column = pa.chunked_array([flat])
    lists = column.cast(pa.list_(pa.float32())).combine_chunks()
    lengths = pc.unique(pc.list_value_length(lists)).drop_null().to_pylist()
    if lengths[1:]:
        raise FrameError(f"{what} has {lengths[0]} numbers in one frame, {lengths[1]} in another.")
    infinite = np.flatnonzero(np.isinf(pc.list_flatten(lists).to_numpy(zero_copy_only=False)))
    if len(infinite):
        frame = np.flatnonzero(lists.is_valid())[infinite[0] // lengths[0]]
        raise FrameError(f"{what} is infinite in frame {frame}; leave unknown numbers empty.")
    return lists
