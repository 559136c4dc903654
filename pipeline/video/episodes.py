"""What a LeRobot data set, version 3, says that it holds: cameras, and where each episode lies.

`meta/info.json` says the features of a frame and how files are named, `meta/episodes/` in which
files, and where in them, each episode is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import FrameError
from pipeline.frames.tars import Rejected
from pipeline.storage.files import read_json
from pipeline.storage.places import Place
from pipeline.video.templates import DATA, VIDEO, Template

INFO, EPISODES = "meta/info.json", "meta/episodes"
CAMERA = "observation.images."
INFO_KEYS = ("info", "video_info")
"""What is known of a camera's videos, now and in older sets."""
DEPTH = ("video.is_depth_map", "is_depth_map")
"""What says of a camera that it sees no colours, by version of LeRobot."""
STATES = ("action", "observation.state")
"""Numbers of each frame that are kept."""
TABLE = "data/"
"""Stands for the table of an episode's numbers among its files: no camera can be called so."""
PLACE = ("chunk_index", "file_index")
"""Numbers of a file."""
MAX_PLACE = 1 << 40
"""Of numbers of episodes, frames, files and seconds."""


def is_lerobot(folder: Path) -> bool:
    """Says whether a folder is such a data set."""
    return (folder / INFO).is_file() and "features" in read_json(folder / INFO, FrameError, "set")


def no_cameras(place: Place) -> FrameError:
    """Returns the error of who asks for cameras of anything else."""
    return FrameError(f"{place} is no LeRobot data set, and so has no cameras.")


@dataclass(frozen=True)
class Episodes:
    """What a data set says that it holds."""

    cameras: list[str]
    """Those that are asked for."""
    states: list[str]
    """Numbers of each frame that are to be kept."""
    rate: float
    """Frames a second."""
    rows: list[dict[str, Any]]
    """One for each episode: see `_episodes`."""
    rejected: list[Rejected]

    @property
    def files(self) -> list[Path]:
        """Every file that episodes lie in, in order."""
        return sorted({path for row in self.rows for path in row["files"].values()})

    def videos(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yields name, camera and row of each episode of each camera."""
        for row in self.rows:
            for camera in self.cameras:
                yield f"episode-{row['episode_index']:06d}-{_short(camera)}", camera, row


def list_episodes(folder: Path, cameras: Sequence[str]) -> Episodes:
    """Reads what a data set holds of these cameras, of all if none is named; opens no video.

    Raises FrameError for a data set of another version, without videos, or without such a camera.
    """
    info = read_json(folder / INFO, FrameError, "LeRobot data set")
    version, features = str(info.get("codebase_version")), info.get("features")
    if not version.startswith("v3.") or not isinstance(features, dict):
        raise FrameError(
            f"{folder / INFO} is of version {version}; only v3 is read: convert it with LeRobot's "
            "own script."
        )
    rate = info.get("fps")
    if not isinstance(rate, int | float) or not 0 < rate < 1000:
        raise FrameError(f"{folder / INFO} says fps {str(rate)[:100]}, which cannot be.")
    chosen = _choose(folder, features, cameras)
    states = [name for name in STATES if name in features]
    depth = [
        Rejected(name, "a depth map, which is no picture")
        for name, about in features.items()
        if _is_depth(about)
    ]
    rows = list(_episodes(folder, info, chosen, with_states=bool(states)))
    return Episodes(chosen, states, float(rate), rows, depth)


def _short(camera: str) -> str:
    return camera.removeprefix(CAMERA)


def _is_depth(feature: object) -> bool:
    said = [feature.get(key) for key in INFO_KEYS] if isinstance(feature, dict) else []
    return any(info.get(key) for info in said if isinstance(info, dict) for key in DEPTH)


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
        raise FrameError(
            f"{folder / INFO} names no camera with videos, in colour; pictures that lie in tables "
            "(dtype image) are not read."
        )
    by_name = {**{name: name for name in known}, **{_short(name): name for name in known}}
    if wrong := [name for name in cameras if name not in by_name]:
        raise FrameError(
            f"{folder} has no camera {wrong[0]!r}; it has {', '.join(map(_short, known))}."
        )
    return [by_name[name] for name in cameras] or known


def _templates(folder: Path, info: Mapping[str, Any]) -> dict[str, Template]:
    """Returns how the files of cameras and tables are named."""
    found = {}
    for key, usual in (("video_path", VIDEO), ("data_path", DATA)):
        text = usual if info.get(key) is None else info[key]
        if not isinstance(text, str):
            raise FrameError(f"{folder / INFO}: {key} is no name, but {str(text)[:100]!r}.")
        if key == "data_path" and not text.endswith(".parquet"):
            raise FrameError(f"{folder / INFO}: {key} {text[:100]!r} is no name of a .parquet.")
        found[key] = Template(f"{folder / INFO}: {key}", text)
    return found


def _episodes(
    folder: Path, info: Mapping[str, Any], cameras: Sequence[str], *, with_states: bool
) -> Iterator[dict[str, Any]]:
    """Yields each episode: `files` by camera, and under each camera the seconds (first, end)."""
    templates = _templates(folder, info)
    where = {name: f"videos/{name}" for name in cameras} | ({TABLE: "data"} if with_states else {})
    columns = ["episode_index", "length", "tasks"]
    columns += [f"{at}/{key}" for at in where.values() for key in PLACE]
    ends = ("from_timestamp", "to_timestamp")
    spans = [f"videos/{name}/{end}" for name in cameras for end in ends]
    owners: dict[Path, tuple[str, dict[str, int]]] = {}
    count = 0
    for path in sorted((folder / EPISODES).glob("*/*.parquet")):
        for row in read_table(path, [*columns, *spans]).to_pylist():
            _check(path, row, [*columns, *spans])
            if row["episode_index"] != count:
                raise FrameError(f"{path} lists episode {row['episode_index']}, not {count}.")
            count += 1
            files = {}
            for name, at in where.items():
                place = {key: row[f"{at}/{key}"] for key in PLACE}
                template = templates["data_path" if name == TABLE else "video_path"]
                files[name] = template.path(folder, name, place)
                if owners.setdefault(files[name], (name, place)) != (name, place):
                    raise FrameError(f"{template.where} gives two files the name {files[name]}.")
            seconds = {name: tuple(row[f"videos/{name}/{end}"] for end in ends) for name in cameras}
            yield {**row, **seconds, "files": files}
    if not count:
        raise FrameError(
            f"{folder / EPISODES} lists no episode; a recording that LeRobot did not finish "
            "(`finalize`) has none."
        )


def _check(path: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raises FrameError unless a row says which episode it is, and where it is."""
    for name in columns:
        kind = int | float if name.endswith("timestamp") else int
        number = row[name]
        if name != "tasks" and not (isinstance(number, kind) and 0 <= number < MAX_PLACE):
            raise FrameError(
                f"{path}: episode {row['episode_index']} says no place of its own: {name} is "
                f"{number!r}."[:500]
            )


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Reads columns of a table. Raises FrameError, naming it, if it is damaged or has them not."""
    try:
        if missing := set(columns) - set(pq.read_schema(path).names):
            raise FrameError(f"{path} has no column {min(missing)}.")
        table = pq.read_table(path, columns=list(columns)).select(list(columns))
        table.validate(full=True)
        return table
    except FileNotFoundError:
        raise FrameError(f"{path} is missing.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise FrameError(f"{path} is damaged: {said}.") from None
