"""Which videos there are in a folder or in tars, and what tells the content of one from another."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from pipeline.errors import FrameError
from pipeline.frames.given import is_folder, is_tar
from pipeline.frames.scan import files_below
from pipeline.frames.tars import FILMS, SPLITS, PartlyUsedTar, Rejected, present, refuse_broken
from pipeline.progress import progress
from pipeline.storage.bucket import Bucket
from pipeline.storage.files import printable
from pipeline.storage.places import Place, object_stamp, open_storage
from pipeline.video.clips import Source
from pipeline.video.episodes import is_lerobot, no_cameras
from pipeline.video.footage import open_video
from pipeline.video.lerobot import find_episodes
from pipeline.video.reader import read_video
from pipeline.video.shards import Shards
from pipeline.video.tiles import ExtractConfig

AT_ONCE = 1 << 22
"""Bytes hashed in one go; whole megabytes."""

LONG_LOOK = 1024
"""Megabytes from which on it is shown how far the look at the videos is."""

SCRATCH = ".extract/staged/members"
"""Where the video of a tar lies while it is decoded, below what is made."""

Known = dict[str, list[Any]]
"""Hashes of files, by path: [bytes, time of change, inode, SHA-256]."""


def find_videos(
    places: Sequence[Place],
    config: ExtractConfig,
    *,
    out: Path,
    known: Known | None = None,
    skip_broken: bool = False,
    cameras: Sequence[str] = (),
    hashed: bool = True,
) -> tuple[list[Source], list[Rejected]]:
    """Lists the videos of a folder, and of tars; every other file is rejected with a reason.

    `places` are one folder, or tars: see `pipeline.frames.given.expand`. A video is what FFmpeg
    finds one in, whatever its name; for tars see `pipeline.video.shards`; of a LeRobot data set
    these `cameras` are taken, or all, see `pipeline.video.lerobot`. What lies in `out` is left out:
    it was made, not given. If there are folders `train` and `test`, their videos stay in these, and
    others are rejected. Every video has a name of its own. `known` spares and learns hashes; unless
    `hashed`, contents have no name. Raises FrameError, naming it, for a broken tar; to
    `skip_broken` ones, they are rejected, and what lies before the break is used.
    """
    known = {} if known is None else known
    (folder,) = places if len(places) == 1 and is_folder(places[0]) else (None,)
    look = partial(_looked_into, known=known, hashed=hashed)
    if isinstance(folder, Path) and is_lerobot(folder):
        return find_episodes(folder, config, cameras, look)
    if cameras:
        raise no_cameras(places[0])
    if isinstance(folder, Path):
        files, rejected = _below(folder, out)
    else:
        tars = _tars_below(folder) if folder else places
        tars, rejected = present(tars, skip_broken=skip_broken)
        files = [_File(tar, PurePosixPath(tar).name, None) for tar in tars]
    local = [file.place for file in files if isinstance(file.place, Path)]
    stamps: dict[Place, object] = dict(zip(local, look(local), strict=True))
    shards = Shards(config, out / SCRATCH)
    found: list[Source] = []
    for file in files:
        of_videos = is_tar(file.place)
        try:
            stamp = stamps[file.place] if file.place in stamps else _stamp(str(file.place))
            if isinstance(stamp, FrameError):
                raise stamp
            if of_videos:
                name = str(PurePosixPath(file.name).with_suffix(""))
                shards.add(file.place, name, stamp, split=file.split)
            else:
                found.append(_video(Path(file.place), file, str(stamp), config))
        except FrameError as error:
            kind = PartlyUsedTar if of_videos else Rejected
            rejected.append(kind(printable(file.given), str(error)))
    if not skip_broken:
        refuse_broken(rejected)
    return _renamed([*found, *shards.sources()]), rejected + shards.rejected


@dataclass(frozen=True)
class _File:
    """A video or a tar that was found."""

    place: Place
    name: str
    """Its path in the folder of its split, or of all."""
    split: str | None

    @property
    def given(self) -> str:
        """Its path in what was given."""
        return f"{self.split}/{self.name}" if self.split else self.name


def _video(path: Path, file: _File, stamp: str, config: ExtractConfig) -> Source:
    read = partial(read_video, path, **config.reading)
    return Source(file.name, stamp, read, file.split, lend=partial(_lent, path))


def _renamed(sources: Iterable[Source]) -> list[Source]:
    """Gives every video a name of its own."""
    taken: set[str] = set()
    renamed = []
    for source in sources:
        renamed.append(replace(source, name=_free_name(Path(source.name), taken)))
        taken.add(renamed[-1].name)
    return renamed


def _lent(path: Path) -> AbstractContextManager[Path]:
    return nullcontext(path)


def _tars_below(url: Place) -> list[Place]:
    """Lists the tars below a prefix of a bucket."""
    bucket = open_storage(url)
    assert isinstance(bucket, Bucket)
    return [bucket.place(name) for name in sorted(bucket.below()) if is_tar(name)]


def _stamp(url: str) -> list[Any]:
    """Returns what changes with an object. Raises FrameError if there is none."""
    try:
        return object_stamp(url)
    except FileNotFoundError:
        raise FrameError(f"{url} is missing.") from None


def _below(folder: Path, out: Path) -> tuple[list[_File], list[Rejected]]:
    """Lists the files of a folder, and what is not to be read."""
    if folder.resolve().is_relative_to(out.resolve()):
        raise FrameError(f"{out} holds the videos themselves; choose another --out.")
    given = all((folder / split).is_dir() for split in SPLITS)
    rejected: list[Rejected] = []
    files: list[_File] = []
    for path, reason in files_below(folder, suffixes=FILMS, skip=[out]):
        relative = path.relative_to(folder)
        if given and relative.parts[0] not in SPLITS:
            reason = reason or f"outside of {' and '.join(f'{split}/' for split in SPLITS)}"
        if reason:
            rejected.append(Rejected(printable(str(relative)), reason))
        elif given:
            name = str(Path(*relative.parts[1:]))
            files.append(_File(path, name, relative.parts[0]))
        else:
            files.append(_File(path, str(relative), None))
    return files, rejected


def _looked_into(
    paths: Sequence[Path], known: Known, *, hashed: bool = True
) -> list[str | FrameError]:
    """Returns the hash of every video, or why a file is none; several at a time.

    Unless `hashed`, hashes are empty, and files are only opened.
    """
    if not hashed:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(_opened, paths))
    total = sum(_megabytes(path.stat().st_size) for path in paths if path.exists())
    before = dict(known)
    known.clear()  # Files that are gone are forgotten.
    one_at_a_time = Lock()
    with (
        progress("look at videos", total, "MB", shown=total >= LONG_LOOK) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def tell(num_bytes: int) -> None:
            with one_at_a_time:
                advance(_megabytes(num_bytes))

        return list(pool.map(lambda path: _look_into(path, before, known, tell), paths))


def _megabytes(num_bytes: int) -> int:
    return -(-num_bytes >> 20)


def _opened(path: Path) -> str | FrameError:
    try:
        path.stat()
        _open_if_video(path)
    except FrameError as error:
        return error
    except OSError as error:
        return _unreadable(path, error)
    return ""


def _open_if_video(path: Path) -> None:
    """Raises FrameError if what is no tar, nor a table of a data set, is no video."""
    if not is_tar(path) and path.suffix.lower() != ".parquet":
        with open_video(path):
            pass


def _unreadable(path: Path, error: OSError) -> FrameError:
    return FrameError(f"{printable(str(path))} cannot be read: {os.strerror(error.errno or 0)}.")


def _look_into(
    path: Path, before: Mapping[str, list[Any]], known: Known, advance: Callable[[int], Any]
) -> str | FrameError:
    try:
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
        if before.get(str(path), [])[:-1] == stamp:
            advance(state.st_size)
            digest = str(before[str(path)][-1])
        else:
            _open_if_video(path)  # Before it is hashed: a large file may be none.
            digest = _hash(path, advance)
    except FrameError as error:
        return error
    except OSError as error:
        return _unreadable(path, error)
    known[str(path)] = [*stamp, digest]
    return digest


def _hash(path: Path, advance: Callable[[int], Any]) -> str:
    """Returns the SHA-256 of a file's bytes, telling how far it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(AT_ONCE):
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()


def _free_name(relative: Path, taken: set[str]) -> str:
    """Names a video after its path, as shortly as can be without a name that is taken."""
    joined = "-".join(relative.with_suffix("").parts)
    # A line break in a name would break a line of train.txt; nor can all bytes be written there.
    plain = "".join(c if c.isprintable() and c != " " else "_" for c in joined)
    suffix = "".join(c if c.isprintable() else "_" for c in relative.suffix)
    full = plain + suffix.replace(".", "-")
    names = itertools.chain([plain, full], (f"{full}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)
