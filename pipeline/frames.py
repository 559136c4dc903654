"""Frame lists, folders and tars -> videos: natural order, gaps, rejects with reasons."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.clip_tars import SUFFIX, TarFrame, read_clips
from pipeline.errors import FrameError
from pipeline.images import FrameFile
from pipeline.storage import Bucket, Place, open_storage

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
SPLITS = ("train", "test")
REQUESTS = 8
"""Tars that are looked into at once: a bucket takes its time to answer."""


@dataclass(frozen=True)
class Video:
    """Frames that follow one another without a gap."""

    name: str
    split: str
    frames: tuple[FrameFile, ...]
    """The images, in order."""


@dataclass(frozen=True)
class Rejected:
    """A file or video that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class FrameFolder:
    """Every image file of a folder, in a video or rejected."""

    videos: list[Video]
    rejected: list[Rejected]
    num_files: int


def group_frames(
    files: Iterable[Path | TarFrame], *, split: str, root: Path
) -> tuple[list[Video], list[Rejected]]:
    """Groups images into videos by folder and by name up to the final number.

    Frames are ordered by number, padded or not. A missing number starts a new piece of the video,
    named `video#2` and so on: no window may jump over a gap.
    """
    rejected: list[Rejected] = []
    groups: dict[tuple[Path, str], list[tuple[int, FrameFile]]] = {}
    for file in files:
        path = Path(file.path) if isinstance(file, TarFrame) else file
        match = re.fullmatch(r"(.*?)(\d+)", path.stem, re.ASCII | re.DOTALL)
        if path.suffix.lower() not in IMAGES:
            rejected.append(Rejected(str(file), "no image by its extension"))
        elif not match or len(match[2]) > 18:
            rejected.append(Rejected(str(file), "not named [VIDEO_ID]_[FRAME_NUM].ext"))
        else:
            frame = file if isinstance(file, TarFrame) else str(file)
            groups.setdefault((path.parent, match[1]), []).append((int(match[2]), frame))
    videos = []
    taken: set[str] = set()
    for (folder, prefix), frames in sorted(groups.items()):
        pieces: list[list[FrameFile]] = []
        last: int | None = None
        for number, frame in sorted(frames, key=lambda pair: (pair[0], str(pair[1]))):
            if number == last:
                rejected.append(Rejected(str(frame), f"another file has frame number {number}"))
                continue
            if last is None or number != last + 1:
                pieces.append([])
            pieces[-1].append(frame)
            last = number
        inside = folder.relative_to(root) if folder.is_relative_to(root) else folder
        names = _free_names(inside, prefix, len(pieces), taken)
        taken.update(names)
        videos += [Video(n, split, tuple(p)) for n, p in zip(names, pieces, strict=True)]
    return videos, rejected


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
        lines = (root / f"{split}.txt").read_text().splitlines()
    except UnicodeDecodeError as error:
        raise FrameError(f"{root / split}.txt is not a list of paths: {error}.") from None
    for line in filter(None, map(str.strip, lines)):
        path = Path(line)
        if not path.is_absolute() and ".." in path.parts:
            rejected.append(Rejected(line, "leads out of the folder of its list"))
        else:
            paths.append(root / path)
    return paths, rejected


def files_below(
    folder: Path, root: Path, *, suffixes: Sequence[str], skip: Iterable[Path] = ()
) -> Iterator[tuple[Path, str | None]]:
    """Yields every file below `folder`, itself in `root`, with the reason if it must not be read.

    Leaves out what is hidden or lies in the folders `skip`. A folder is yielded, with a reason, if
    it is a link, which is not followed, or has one of the `suffixes` of files.
    """
    place, inside, left_out = folder.resolve(), root.resolve(), [path.resolve() for path in skip]
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        real = place / below  # Exact but for a link at the end: rglob follows none on its way.
        if any(part.startswith(".") for part in below.parts):
            continue
        if any(real.is_relative_to(other) for other in left_out):
            continue
        is_link, is_folder = path.is_symlink(), path.is_dir()
        if is_link and not path.exists():
            yield path, "a link that leads nowhere"
        elif not (path.resolve() if is_link else real).is_relative_to(inside):
            yield path, "a link that leads outside the folder"
        elif is_link and is_folder:
            yield path, "a link to a folder, which is not followed"
        elif is_folder and path.suffix.lower() in suffixes:
            yield path, "a folder, though named like a file"
        elif not is_folder:
            yield path, None if path.is_file() else "neither a file nor a folder"


def _found(root: Path, split: str | None) -> tuple[list[Path], list[Rejected]]:
    """Lists the files of `root`, or of its folder `split`, and which are not used."""
    paths, rejected = [], []
    for path, reason in files_below(root / (split or ""), root, suffixes=IMAGES):
        if reason:
            rejected.append(Rejected(str(path), reason))
        else:
            paths.append(path)
    return paths, rejected


def _tarred(
    files: Iterable[tuple[Place, str | None]],
) -> tuple[dict[str, list[TarFrame]], list[Rejected]]:
    """Lists the frames in those `files` that are tars, by split, and what beside them is unused."""
    frames: dict[str, list[TarFrame]] = {}
    tars, beside = [], []
    for path, reason in files:
        suffix = Path(path).suffix.lower()
        if suffix == SUFFIX and not reason:
            tars.append(path)
        elif reason or suffix in IMAGES:
            beside.append((str(path), reason))
    unread = "beside tars, which are read instead" if tars else "in no tar"
    rejected = [Rejected(path, reason or unread) for path, reason in beside]
    pool = ThreadPoolExecutor(REQUESTS)
    try:
        found = pool.map(lambda tar: list(read_clips(tar, SPLITS)), tars)
        for clips in tqdm(found, "look into tars", len(tars), leave=False, disable=None):
            for split, clip in clips:
                frames.setdefault(split, []).extend(clip)
    finally:
        pool.shutdown(cancel_futures=True)
    return frames, rejected


def _objects_below(root: str) -> Iterator[tuple[str, None]]:
    """Yields the URL of every object below a place of a bucket, as `files_below` does files."""
    bucket = open_storage(root)
    assert isinstance(bucket, Bucket)
    for name in sorted(bucket.below()):
        if not any(part.startswith(".") for part in name.split("/")):
            yield bucket.place(name), None


def _beside(root: Path, folders: Sequence[str]) -> list[Rejected]:
    """Rejects the images of `root` that lie in none of its split folders."""
    reason = f"outside of {' and '.join(f'{split}/' for split in folders)}"
    skip = [root / split for split in folders]
    return [
        Rejected(str(path), wrong or reason)
        for path, wrong in files_below(root, root, suffixes=IMAGES, skip=skip)
        if wrong or path.suffix.lower() in IMAGES
    ]


def _merged(
    found: Mapping[str, tuple[list[Path], list[Rejected]]],
) -> tuple[dict[str, list[Path]], list[Rejected]]:
    rejected = [item for _, refused in found.values() for item in refused]
    return {split: paths for split, (paths, _) in found.items()}, rejected


def scan_frames(root: Place) -> FrameFolder:
    """Finds the videos of a frame folder, or of the tars below a prefix of a bucket.

    With `train.txt` or `test.txt`, one path a line (absolute, or relative to the list), only what
    they name is read. Otherwise, if there are `.tar` files, the clips in these: what
    `pipeline.clip_tars` writes. Otherwise each folder of images is a video, in the split of the
    top folder it lies in (`train/`, `test/`), or in `train` if there are no such folders; images
    beside them are rejected. Raises FrameError if there is not one video, or a tar holds anything
    that it should not, and StorageError if a bucket cannot be read.
    """
    if isinstance(root, str):
        return _grouped(*_tarred(_objects_below(root)), root)
    if not root.is_dir():
        raise FrameError(f"{root} is not a folder of frames.")
    lists = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
    folders = [split for split in SPLITS if (root / split).is_dir()]
    files: Mapping[str, Sequence[Path | TarFrame]]
    if lists:
        files, rejected = _merged({split: _listed(root, split) for split in lists})
    elif any(root.rglob(f"*{SUFFIX}")):
        files, rejected = _tarred(files_below(root, root, suffixes=(SUFFIX,)))
    elif folders:
        files, rejected = _merged({split: _found(root, split) for split in folders})
        rejected += _beside(root, folders)
    else:
        files, rejected = _merged({"train": _found(root, None)})
    return _grouped(files, rejected, root)


def _grouped(
    files: Mapping[str, Sequence[Path | TarFrame]], rejected: list[Rejected], root: Place
) -> FrameFolder:
    num_files = len(rejected) + sum(map(len, files.values()))
    videos: list[Video] = []
    for split in filter(files.get, SPLITS):
        made, foreign = group_frames(files[split], split=split, root=Path(root))
        videos += made
        rejected += foreign
    if not videos:
        why = f"; for example {rejected[0].name}: {rejected[0].reason}" if rejected else ""
        raise FrameError(
            f"{root} holds no video: {num_files} files, none usable{why}. Name frames "
            "[VIDEO_ID]_[FRAME_NUM].png, list them in train.txt, or make them with `mebt extract`"
            f"{'; in a bucket only tars are read' if isinstance(root, str) else ''}."
        )
    return FrameFolder(videos, rejected, num_files)
