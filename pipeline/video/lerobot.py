"""LeRobot data sets, version 3: an episode of a camera is a video, a stretch of a longer file.

`meta/info.json` says the features of a frame, `meta/episodes/` where each episode lies, and `data/`
holds numbers for each frame, such as `action` and `observation.state`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import fingerprint
from pipeline.errors import FrameError
from pipeline.frames.images import Frame
from pipeline.frames.tars import Rejected
from pipeline.storage.files import read_json
from pipeline.video.clips import Source
from pipeline.video.footage import About
from pipeline.video.reader import read_stretch
from pipeline.video.tiles import ExtractConfig

INFO, EPISODES = "meta/info.json", "meta/episodes"
DATA = "data/chunk-{chunk:03d}/file-{file:03d}.parquet"
VIDEO = "videos/{camera}/chunk-{chunk:03d}/file-{file:03d}.mp4"
CAMERA = "observation.images."
STATES = ("action", "observation.state")
"""Numbers of each frame that are kept."""
MAX_PLACE = 1 << 40
"""Of numbers of episodes, frames, files and seconds."""
Hashes = Callable[[Sequence[Path]], Sequence[str | FrameError]]
"""Returns the hash of each file, or why it cannot be used."""


def is_lerobot(folder: Path) -> bool:
    """Says whether a folder is such a data set."""
    return (folder / INFO).is_file() and "features" in read_json(folder / INFO, FrameError, "set")


def find_episodes(
    folder: Path, config: ExtractConfig, cameras: Sequence[str], hashes: Hashes
) -> tuple[list[Source], list[Rejected]]:
    """Lists every episode of these cameras, of all if none is named.

    Raises FrameError for a data set of another version, without videos, or without such a camera.
    """
    info = read_json(folder / INFO, FrameError, "LeRobot data set")
    version, features = str(info.get("codebase_version")), info.get("features")
    if not version.startswith("v3.") or not isinstance(features, dict):
        raise FrameError(
            f"{folder / INFO} is of version {version}; only v3 is read: convert it with LeRobot's "
            "own script."
        )
    if config.fps is not None:
        raise FrameError(
            f"extract.fps would part frames of {folder} from their states; thin them by "
            "tokenize.stride."
        )
    chosen = _choose(folder, features, cameras)
    states = [name for name in STATES if name in features]
    rows = list(_episodes(folder, chosen, with_states=bool(states)))
    files = sorted({path for row in rows for path in row["files"].values()})
    found = dict(zip(files, hashes(files), strict=True))
    rate = float(info.get("fps") or 0)
    if not 0 < rate < 1000:
        raise FrameError(f"{folder / INFO} says fps {info.get('fps')!r}, which cannot be.")
    sources: list[Source] = []
    rejected = [
        Rejected(name, "a depth map, which is no picture")
        for name, about in features.items()
        if _is_depth(about)
    ]
    for row in rows:
        number, length, caption = row["episode_index"], row["length"], " ".join(row["tasks"] or [])
        for camera in chosen:
            path, data = row["files"][camera], row["files"].get(DATA)
            name = f"episode-{number:06d}-{_short(camera)}"
            content = [found[path], row[camera], length, data and found[data]]
            if wrong := next((c for c in content if isinstance(c, FrameError)), None):
                rejected.append(Rejected(name, str(wrong)))
                continue
            numbers = partial(read_states, data, number, length, states) if data else None
            read = partial(_read, path, row[camera], length, rate, config, numbers)
            about = {"source": f"{folder}: episode {number}, {camera}", "caption": caption}
            sources.append(Source(name, fingerprint(content), read, None, about, numbers))
    return sources, rejected


def _short(camera: str) -> str:
    return camera.removeprefix(CAMERA)


def _is_depth(feature: object) -> bool:
    info = feature.get("info") if isinstance(feature, dict) else None
    return isinstance(info, dict) and bool(info.get("is_depth_map"))


def _choose(folder: Path, features: Mapping[str, Any], cameras: Sequence[str]) -> list[str]:
    """Returns the features that are the cameras asked for."""
    known = [
        name
        for name, about in features.items()
        if isinstance(about, dict) and about.get("dtype") == "video" and not _is_depth(about)
    ]
    for name in known:
        if "/" in name or "\\" in name or ".." in name:
            raise FrameError(f"{folder / INFO}: the camera {name!r} leads elsewhere; refused.")
    if not known:
        raise FrameError(f"{folder / INFO} names no camera with videos, in colour.")
    by_name = {**{name: name for name in known}, **{_short(name): name for name in known}}
    if wrong := [name for name in cameras if name not in by_name]:
        raise FrameError(
            f"{folder} has no camera {wrong[0]!r}; it has {', '.join(map(_short, known))}."
        )
    return [by_name[name] for name in cameras] or known


def _episodes(
    folder: Path, cameras: Sequence[str], *, with_states: bool
) -> Iterator[dict[str, Any]]:
    """Yields each episode: `files` by camera, and under each camera the seconds (first, end)."""
    where = {name: f"videos/{name}" for name in cameras} | ({DATA: "data"} if with_states else {})
    columns = ["episode_index", "length", "tasks"]
    columns += [f"{at}/{key}" for at in where.values() for key in ("chunk_index", "file_index")]
    ends = ("from_timestamp", "to_timestamp")
    spans = [f"videos/{name}/{end}" for name in cameras for end in ends]
    expected = 0
    for path in sorted((folder / EPISODES).glob("*/*.parquet")):
        for row in _read_table(path, [*columns, *spans]).to_pylist():
            places = [row[key] for key in (*columns, *spans) if key != "tasks"]
            if any(number is None or not 0 <= number < MAX_PLACE for number in places):
                raise FrameError(
                    f"{path}: episode {row['episode_index']} says no place of its own."
                )
            if row["episode_index"] != expected:
                raise FrameError(f"{path} lists episode {row['episode_index']}, not {expected}.")
            expected += 1
            files = {}
            for name, at in where.items():
                numbers = {key: row[f"{at}/{key}_index"] for key in ("chunk", "file")}
                pattern = DATA if name == DATA else VIDEO
                files[name] = folder / pattern.format(camera=name, **numbers)
            seconds = {name: tuple(row[f"videos/{name}/{end}"] for end in ends) for name in cameras}
            yield {**row, **seconds, "files": files}
    if not expected:
        raise FrameError(f"{folder / EPISODES} lists no episode.")


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        if missing := set(columns) - set(pq.read_schema(path).names):
            raise FrameError(f"{path} has no column {min(missing)}.")
        return pq.read_table(path, columns=list(columns)).select(list(columns))
    except FileNotFoundError:
        raise FrameError(f"{path} is missing.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FrameError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None


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
    """Decodes an episode. Raises FrameError unless it has as many frames as it says."""
    about.rate = rate
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


@lru_cache(2)
def _numbers(path: Path, names: tuple[str, ...], _: int) -> tuple[pa.Table, dict[int, range]]:
    """Returns the numbers of a file, by episode and frame, and the rows of each episode.

    The last number changes with the file. A file holds many episodes, so it is kept for the next.
    """
    table = _read_table(path, ["episode_index", "frame_index", "timestamp", *names])
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    episodes, first = np.unique(table["episode_index"].to_numpy(), return_index=True)
    ends = [*first[1:].tolist(), len(table)]
    return table, dict(zip(episodes.tolist(), map(range, first.tolist(), ends), strict=True))


def read_states(path: Path, episode: int, length: int, names: Sequence[str]) -> pa.Table:
    """Returns time and numbers of each frame of an episode: columns `time`, then `names`.

    Raises FrameError unless there are so many.
    """
    table, rows = _numbers(path, tuple(names), path.stat().st_mtime_ns)
    found = rows.get(episode, range(0))
    mine = table.slice(found.start, len(found))
    if mine["frame_index"].to_pylist() != list(range(length)):
        raise FrameError(f"{path} has {len(mine)} rows of episode {episode}, which has {length}.")
    columns = [pc.cast(mine["timestamp"], pa.float64())]
    for name in names:
        values = mine[name]
        if not pa.types.is_list(values.type) and not pa.types.is_fixed_size_list(values.type):
            values = pa.chunked_array([[[value] for value in values.to_pylist()]])
        columns.append(values.cast(pa.list_(pa.float32())))
    return pa.table(columns, names=["time", *names])
