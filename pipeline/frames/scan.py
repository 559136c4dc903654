"""Frame lists, folders and tars -> videos: natural order, gaps, rejects with reasons."""

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FrameError
from pipeline.frames.films import FilmFrame, LookAtFilm, describe_films, films_rate, open_films
from pipeline.frames.given import Frames, Tars, is_tar
from pipeline.frames.images import FrameFile, look_at_first
from pipeline.frames.numbering import cut_runs
from pipeline.frames.tars import (
    IMAGES,
    SPLITS,
    SUFFIX,
    Rejected,
    TarFrame,
    describe_broken,
    list_clips,
    reject,
)
from pipeline.storage.bucket import Bucket
from pipeline.storage.files import read_text
from pipeline.storage.places import Place, open_storage

MAX_NAME, MAX_PATH = 255, 4095
"""Bytes of a name and of a path that a system can find."""
MAX_NUMBER = (1 << 63) - 1
"""Of a frame, where it is compared with others."""
MAX_SAID = 5
"""Ways of numbering frames that are told apart."""


@dataclass(frozen=True)
class Video:
    """Frames that follow one another without a gap."""

    name: str
    split: str
    frames: tuple[FrameFile, ...]
    """The images, in order."""
    numbering: str = ""
    """What is to be said of the numbers of its frames: steps other than 1, and jumps."""


@dataclass(frozen=True)
class FrameFolder:
    """Every image file of a folder, in a video or rejected."""

    videos: list[Video]
    rejected: list[Rejected]
    num_files: int

    def rate(self, *, at_least: int = 1) -> float | None:
        """Returns the frames a second of films of `at_least` so many; None if there is else."""
        return films_rate([v.frames[0] for v in self.videos if len(v.frames) >= at_least])

    def notes(self, *, as_stored: bool) -> list[str]:
        """Says which tars are broken, and what else one might not expect and is no error."""
        return describe_broken(self.rejected) + describe_frames(self.videos, as_stored=as_stored)


def group_frames(
    files: Iterable[Path | TarFrame], *, split: str, root: Path
) -> tuple[list[Video], list[Rejected]]:
    """Groups images into videos by folder and by name up to the final number; films are their own.

    Frames are ordered by number, padded or not. A missing number starts a new piece of the video,
    named `video#2` and so on: no window may jump over a gap. Numbers may grow in steps: see
    `pipeline.frames.numbering`.
    """
    rejected: list[Rejected] = []
    groups: dict[tuple[Path, str, str], list[tuple[int, FrameFile]]] = {}
    for file in files:
        path = Path(_file_name(str(file.path))) if isinstance(file, TarFrame) else file
        match = re.fullmatch(r"(.*?)(\d+)", path.stem, re.ASCII | re.DOTALL)
        if path.suffix.lower() not in IMAGES:
            rejected.append(reject(file, "no image by its extension"))
        elif not match:
            rejected.append(reject(file, "not named [VIDEO_ID]_[FRAME_NUM].ext"))
        else:
            frame = file if isinstance(file, TarFrame) else str(file)
            film = f"{file.member.tar} {file.member.offset}" if isinstance(file, FilmFrame) else ""
            groups.setdefault((path.parent, match[1], film), []).append((int(match[2]), frame))
    videos = []
    taken: set[str] = set()
    for (folder, prefix, _), members in sorted(groups.items()):
        inside = folder.relative_to(root) if folder.is_relative_to(root) else folder
        try:
            names = Path(_text(inside)), _text(prefix)
        except UnicodeError:
            rejected += [reject(frame, "its name is not UTF-8") for _, frame in members]
            continue
        frames: dict[int, FrameFile] = {}
        for number, frame in sorted(members, key=lambda pair: (pair[0], str(pair[1]))):
            if frames.setdefault(number, frame) is not frame:
                rejected.append(reject(frame, f"another file has frame number {number}"))
        runs, numbering = cut_runs(list(frames))
        ordered = list(frames.values())
        for name, run in zip(_free_names(*names, len(runs), taken), runs, strict=True):
            taken.add(name)
            videos.append(Video(name, split, tuple(ordered[run.start : run.stop]), numbering))
    return videos, rejected


def frame_numbers(video: Video) -> NDArray[np.int64]:
    """Returns the numbers in the names of a video's frames."""
    names = (frame.path if isinstance(frame, TarFrame) else Path(frame) for frame in video.frames)
    numbers = (re.search(r"\d+$", name.stem, re.ASCII) for name in names)
    return np.array([min(int(found[0]), MAX_NUMBER) if found else 0 for found in numbers])


def _text(path: Path | str) -> str:
    """Returns the name of a file as the UTF-8 that its bytes are, whatever the locale.

    Raises UnicodeError if they are none.
    """
    return os.fsencode(path).decode()


def _file_name(text: str) -> str:
    """Returns the name of the file whose bytes are `text` in UTF-8: the inverse of `_text`."""
    return os.fsdecode(text.encode(errors="surrogatepass"))


def _free_names(inside: Path, prefix: str, num_pieces: int, taken: set[str]) -> list[str]:
    """Names the pieces of a video as shortly as can be without a name that is taken."""
    bare = prefix.rstrip("_-. ")
    wanted = [(inside / bare).as_posix(), (inside / prefix).as_posix()]
    if bare == inside.name:  # Frames named after their folder: once is enough.
        wanted.insert(0, inside.as_posix())
    counted = (f"{wanted[-1]}~{n}" for n in itertools.count(2))
    for name in itertools.chain(wanted, counted):
        names = [name, *(f"{name}#{index}" for index in range(2, num_pieces + 1))]
        if taken.isdisjoint(names):
            return names
    raise AssertionError("counting never ends")


def _listed(root: Path, split: str) -> tuple[list[Path], list[Rejected]]:
    paths, rejected = [], []
    try:
        # A name that is not UTF-8 is one bad line, not a bad list.
        text = read_text(root / f"{split}.txt", errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise FrameError(f"{root / split}.txt is not a list of paths: {error}.") from None
    for line in filter(None, map(str.strip, text.split("\n"))):
        path = Path(os.fsdecode(line.encode(errors="surrogateescape")))
        sizes = [len(os.fsencode(part)) for part in path.parts]
        if not path.is_absolute() and ".." in path.parts:
            rejected.append(reject(line, "leads out of the folder of its list"))
        elif max(sizes, default=0) > MAX_NAME or sum(sizes) > MAX_PATH or "\0" in line:
            rejected.append(reject(line, "no file can have such a name"))
        else:
            paths.append(root / path)
    return paths, rejected


def files_below(
    folder: Path, *, suffixes: Sequence[str], skip: Iterable[Path] = ()
) -> Iterator[tuple[Path, str | None]]:
    """Yields every file below `folder`, in order, with the reason if it must not be read.

    A link to a file is that file, wherever it leads. Leaves out what is hidden or lies in the
    folders `skip`. A folder is yielded, with a reason, if it is a link, which is not followed:
    there would be no end to some; if it cannot be opened; or has one of the `suffixes` of files.
    """
    left_out = {path.resolve() for path in skip}
    found: list[tuple[Path, str | None]] = []

    def unopened(error: OSError) -> None:
        found.append((Path(error.filename), f"a folder that cannot be opened: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=unopened):
        here = Path(place)
        entered = []
        for name in folders:
            path = here / name
            if name.startswith(".") or (left_out and path.resolve() in left_out):
                continue
            if path.is_symlink():
                found.append((path, "a link to a folder, which is not followed"))
                continue
            entered.append(name)
            if path.suffix.lower() in suffixes:
                found.append((path, "a folder, though named like a file"))
        folders[:] = entered
        shown = (here / name for name in files if not name.startswith("."))
        found += [(path, _why_unread(path)) for path in shown]
    yield from sorted(found)


def _why_unread(path: Path) -> str | None:
    """Says why a path that is no folder cannot be read, if so."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return "a link that leads nowhere"
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "neither a file nor a folder"
    return None if os.access(path, os.R_OK) else f"cannot be read: {os.strerror(errno.EACCES)}"


def _objects_below(root: str) -> Iterator[tuple[str, None]]:
    """Yields the URL of every object below a place of a bucket, as `files_below` does files."""
    bucket = open_storage(root)
    assert isinstance(bucket, Bucket)
    for name in sorted(bucket.below()):
        if not any(part.startswith(".") for part in name.split("/")):
            yield bucket.place(name), None


def _by_split(
    root: Path, below: Iterable[tuple[Path, str | None]]
) -> tuple[dict[str, list[Path]], list[Rejected]]:
    """Sorts the files of `root` by the top folder they lie in, if any of these names a split."""
    folders = [split for split in SPLITS if (root / split).is_dir()]
    outside = f"outside of {' and '.join(f'{split}/' for split in folders)}"
    files: dict[str, list[Path]] = {}
    rejected = []
    for path, reason in below:
        split = path.relative_to(root).parts[0] if folders else "train"
        if reason:
            rejected.append(reject(path, reason))
        elif split in folders or not folders:
            files.setdefault(split, []).append(path)
        elif path.suffix.lower() in IMAGES:
            rejected.append(reject(path, outside))
    return files, rejected


def scan_frames(
    root: Frames, *, skip_broken: bool = False, look: LookAtFilm | None = None
) -> FrameFolder:
    """Finds the videos of a frame folder, of named tars, or of those below a prefix of a bucket.

    With `train.txt` or `test.txt`, one path a line (absolute, or relative to the list), only what
    they name is read. Otherwise, if there are `.tar` files, the clips in these, as
    `pipeline.frames.tars` writes them, or the images in tars of others, and their films, if there
    is something to `look` at these; images beside them are rejected. Otherwise each folder of
    images is a video, in the split of the top folder it lies in (`train/`, `test/`), or in `train`
    if there are no such folders; images beside them are rejected. Tars of which none begins with a
    clip, such as the one that images were unpacked from, are rejected and the images read.

    With `skip_broken`, nothing is used of a tar that is broken, as if it were not there: frames do
    not depend on how far it could be read.

    Raises FrameError if there is not one video, or a tar beside tars of clips, or without any image
    beside it, holds anything that it should not; and StorageError if a bucket cannot be read.
    """
    if isinstance(root, Tars):
        return _grouped(*list_clips(root.tars, instead=False, skip_broken=skip_broken), root, look)
    if isinstance(root, str):
        return _grouped(*_found(list(_objects_below(root)), root, skip_broken), root, look)
    if not root.is_dir():
        raise FrameError(f"{root} is not a folder of frames.")
    lists = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
    if not lists:
        below = list(files_below(root, suffixes=(*IMAGES, SUFFIX)))
        return _grouped(*_found(below, root, skip_broken), root, look)
    listed = {split: _listed(root, split) for split in lists}
    files = {split: paths for split, (paths, _) in listed.items()}
    return _grouped(files, [item for _, refused in listed.values() for item in refused], root, look)


def _found(
    below: Sequence[tuple[Place, str | None]], root: Place, skip_broken: bool
) -> tuple[Mapping[str, Sequence[Path | TarFrame]], list[Rejected]]:
    """Sorts what lies below `root` into the frames of each split and what is not used."""
    tars = [path for path, reason in below if not reason and is_tar(path)]
    others = [(path, why) for path, why in below if why or not is_tar(path)]
    unread = [(path, why) for path, why in others if why or _suffix(path) in IMAGES]
    has_images = isinstance(root, Path) and any(why is None for _, why in unread)
    frames, rejected = list_clips(tars, instead=has_images, skip_broken=skip_broken)
    if isinstance(root, Path) and not frames:
        files, refused = _by_split(root, [(Path(path), why) for path, why in others])
        return files, rejected + refused
    beside = "beside tars, which are read instead" if tars else "in no tar"
    return frames, rejected + [reject(path, why or beside) for path, why in unread]


def _suffix(path: Place) -> str:
    return Path(path).suffix.lower()


def _grouped(
    files: Mapping[str, Sequence[Path | TarFrame]],
    rejected: list[Rejected],
    root: Frames,
    look: LookAtFilm | None,
) -> FrameFolder:
    num_files = len(rejected) + sum(map(len, files.values()))
    videos: list[Video] = []
    for split in filter(files.get, SPLITS):
        inside = Path() if isinstance(root, Tars) else Path(root)
        opened, refused = open_films(files[split], look) if look else (files[split], [])
        made, foreign = group_frames(opened, split=split, root=inside)
        videos += made
        rejected += refused + foreign
    if not videos:
        why = f"; for example {rejected[0].name}: {rejected[0].reason}" if rejected else ""
        raise FrameError(
            f"{root} holds no video: {num_files} files, none usable{why}. Name frames "
            "[VIDEO_ID]_[FRAME_NUM].png, list them in train.txt, or make them with `mebt extract`"
            f"{'; in a bucket only tars are read' if isinstance(root, str) else ''}."
        )
    return FrameFolder(videos, rejected, num_files)


def describe_frames(videos: Sequence[Video], *, as_stored: bool) -> list[str]:
    """Says what one might not expect of frames and is no error, by the first of each video."""
    numbered: dict[str, list[str]] = {}
    for video in videos:
        if video.numbering:
            numbered.setdefault(video.numbering, []).append(video.name)
    said = [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {numbering}"
        for numbering, names in numbered.items()
    ]
    if len(said) > MAX_SAID:
        said[MAX_SAID:] = [f"{len(said) - MAX_SAID} more videos are numbered in other ways"]
    said += describe_films([(v.name, v.frames[0]) for v in videos], as_stored=as_stored)
    firsts = [video.frames[0] for video in videos if not isinstance(video.frames[0], FilmFrame)]
    return said + look_at_first(firsts, as_stored=as_stored)
