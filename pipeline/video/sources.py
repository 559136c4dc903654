"""Which videos a folder holds, told by their content, and what tells one file from another."""

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from pipeline.errors import FrameError
from pipeline.frames.scan import files_below
from pipeline.frames.tars import SPLITS, Rejected
from pipeline.progress import progress
from pipeline.storage.files import printable
from pipeline.video.clips import Source
from pipeline.video.footage import open_video
from pipeline.video.reader import read_video
from pipeline.video.tiles import ExtractConfig

SUFFIXES = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".gif",
)
"""What videos are often called; only folders of such names are told by it."""
AT_ONCE = 1 << 22
"""Bytes hashed in one go; whole megabytes."""

LONG_LOOK = 1024
"""Megabytes from which on it is shown how far the look at the videos is."""

Known = dict[str, list[Any]]
"""Hashes of files, by path: [bytes, time of change, inode, SHA-256]."""


def find_videos(
    folder: Path, config: ExtractConfig, *, out: Path, known: Known | None = None
) -> tuple[list[Source], list[Rejected]]:
    """Lists the videos under `folder`; every other file is rejected with a reason.

    A video is what FFmpeg finds one in, whatever its name. What lies in `out` is left out: it was
    made, not given. If there are folders `train` and `test`, their videos stay in these, and others
    are rejected. Every video has a name of its own. `known` spares and learns hashes.
    """
    if folder.resolve().is_relative_to(out.resolve()):
        raise FrameError(f"{out} holds the videos themselves; choose another --out.")
    known = {} if known is None else known
    given = all((folder / split).is_dir() for split in SPLITS)
    rejected, files = [], []
    for path, reason in files_below(folder, suffixes=SUFFIXES, skip=[out]):
        relative = path.relative_to(folder)
        if given and relative.parts[0] not in SPLITS:
            reason = reason or f"outside of {' and '.join(f'{split}/' for split in SPLITS)}"
        if reason:
            rejected.append(Rejected(printable(str(relative)), reason))
        else:
            files.append(path)
    sources: list[Source] = []
    taken: set[str] = set()
    for path, found in zip(files, _looked_into(files, known), strict=True):
        relative = path.relative_to(folder)
        if isinstance(found, FrameError):
            rejected.append(Rejected(printable(str(relative)), str(found)))
            continue
        split = relative.parts[0] if given else None
        name = _free_name(Path(*relative.parts[1:]) if given else relative, taken)
        taken.add(name)
        read = partial(
            read_video, path, fps=config.fps, filters=config.filters, as_stored=config.as_stored
        )
        sources.append(Source(name, found, read, split))
    return sources, rejected


def _looked_into(paths: Sequence[Path], known: Known) -> list[str | FrameError]:
    """Returns the hash of every video, or why a file is none; several at a time."""
    total = sum(_megabytes(path.stat().st_size) for path in paths)
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
            with open_video(path):  # Before it is hashed: a large file may be no video.
                pass
            digest = _hash(path, advance)
    except FrameError as error:
        return error
    except OSError as error:
        return FrameError(
            f"{printable(str(path))} cannot be read: {os.strerror(error.errno or 0)}."
        )
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
