"""Clips in WebDataset tars: one sample per clip: its images in order, and a JSON.

A sample of ours is `KEY.json`, that is {"split": …, "frames": [names in a frame folder]}, and one
`KEY.00000.png` and so on for each frame. Keys are a split and numbers, unique over all tars of one
set: names of videos may hold dots. In tars of others a sample is the numbered images of a video,
`KEY.00000.jpg`, or one image, `VIDEO_00000.jpg`; or a film, `KEY.mp4`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar

from tqdm import tqdm

from pipeline.errors import FrameError
from pipeline.storage.files import parse_json, printable, to_json
from pipeline.storage.places import Place, is_remote
from pipeline.storage.tars import Member, add, new_tar, read_samples

SUFFIX = ".tar"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
SPLITS = ("train", "test")
NAME = re.compile(r"([\w-]+)\.([\w.]+)", re.ASCII)
"""Our names of members: a key and an extension."""
FILMS = (
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
"""What videos are often called: those in tars, and folders of such names, are told by it."""
NUMBERED = re.compile(r"(?:.*\D)?(\d+)(\.\w+)", re.ASCII)
"""An extension of one image of several: a number, and the image's own."""


MAX_NAMED = 5
"""Broken tars that are named in one line."""
REQUESTS = 8
"""Tars that are looked into at once: a bucket takes its time to answer."""


class NoClipError(FrameError):
    """A tar that others have made."""


@dataclass(frozen=True)
class Rejected:
    """A file or video that is not used, and why."""

    name: str
    reason: str


class BrokenTar(Rejected):
    """A tar that is damaged at some place, so that nothing of it is used."""

    what: ClassVar = "left out"


class PartlyUsedTar(BrokenTar):
    """A tar that is damaged at some place, and used up to there."""

    what = "used up to the damage"


def refuse_broken(rejected: Sequence[Rejected]) -> None:
    """Raises FrameError if there are broken tars: why the first is, and which others."""
    broken = [item for item in rejected if isinstance(item, BrokenTar)]
    if not broken:
        return
    others = _some(broken[1:])
    more, what = (f" Broken, too: {others}.", "them") if others else ("", "it")
    raise FrameError(f"{broken[0].reason}{more} To go on without {what}, give --skip-broken.")


def describe_broken(rejected: Sequence[Rejected]) -> list[str]:
    """Counts and names broken tars that are skipped, if there are any."""
    kinds: dict[str, list[Rejected]] = {}
    for item in rejected:
        if isinstance(item, BrokenTar):
            kinds.setdefault(item.what, []).append(item)
    return [
        f"{len(broken):,} broken {'tar is' if len(broken) == 1 else 'tars are'} {what}: "
        f"{_some(broken)}"
        for what, broken in kinds.items()
    ]


def present(tars: Sequence[Place], *, skip_broken: bool) -> tuple[list[Place], list[Rejected]]:
    """Returns the tars that are there, and rejects others on this machine.

    Raises FrameError, before any is read, if some are missing and not to be skipped.
    """
    there = {tar: is_remote(tar) or Path(tar).exists() for tar in tars}
    shown = (printable(str(tar)) for tar in tars if not there[tar])
    missing: list[Rejected] = [BrokenTar(name, f"{name} is missing.") for name in shown]
    if not skip_broken:
        refuse_broken(missing)
    return [tar for tar in tars if there[tar]], missing


def _some(tars: Sequence[Rejected]) -> str:
    more = f" and {len(tars) - MAX_NAMED:,} more" if tars[MAX_NAMED:] else ""
    return ", ".join(tar.name for tar in tars[:MAX_NAMED]) + more


def reject(file: object, reason: str) -> Rejected:
    """Rejects a file under a name that can be printed."""
    return Rejected(printable(str(file)), reason)


@dataclass(frozen=True)
class TarFrame:
    """An image inside a tar, and its name in a frame folder."""

    member: Member
    path: PurePosixPath

    def __str__(self) -> str:
        return f"{self.member} ({printable(str(self.path)[:200])})"


class FilmFile(TarFrame):
    """A whole film inside a tar: see `pipeline.frames.films`."""


Clip = tuple[str, Sequence[str]]
"""The split, and the frames as paths in a folder."""


def write_clips(
    folder: Path, clips: Sequence[Clip], out: Path, number: int, *, limit: int
) -> list[Path]:
    """Packs clips of `folder` into tars `SPLIT-NUMBER-PART.tar`; returns these.

    A tar of `limit` bytes gets no further clip; a clip stays together, however large. Equal clips
    make equal bytes.
    """
    written: list[Path] = []
    for split in dict.fromkeys(split for split, _ in clips):
        mine = [frames for other, frames in clips if other == split]
        while mine:
            part = sum(path.name.startswith(f"{split}-") for path in written)
            written.append(out / f"{split}-{number:05d}-{part:03d}{SUFFIX}")
            with new_tar(written[-1]) as tar:
                count = 0
                while mine and (not count or tar.tarstream.offset < limit):
                    frames = mine.pop(0)
                    key = f"{split}-{number:05d}-{part:03d}-{count:06d}"
                    add(tar, key, "json", to_json({"split": split, "frames": list(frames)}))
                    for index, frame in enumerate(frames):
                        data = (folder / frame).read_bytes()
                        add(tar, key, f"{index:05d}{Path(frame).suffix}", data)
                    count += 1
    return written


def list_clips(
    tars: Sequence[Place], *, instead: bool, skip_broken: bool
) -> tuple[dict[str, list[TarFrame]], list[Rejected]]:
    """Lists the frames of the clips in `tars`, by split; rejects broken tars and those without any.

    Films of others are listed as they are: see `pipeline.frames.films`. Of broken tars nothing is
    listed. Raises FrameError if one holds anything else, or if some are broken and not to be
    skipped, unless none of all begins with a clip and there is something to read `instead`.
    """
    frames: dict[str, list[TarFrame]] = {}
    rejected: list[Rejected] = []
    tars, broken = present(tars, skip_broken=skip_broken)
    wrong: FrameError | None = None
    begun = not instead
    pool = ThreadPoolExecutor(REQUESTS)
    try:
        found = pool.map(partial(_clips, others=not instead), tars)
        for path, (clips, empty, error) in tqdm(
            zip(tars, found, strict=True), "look into tars", len(tars), leave=False, disable=None
        ):
            begun = begun or bool(clips)
            if error and not isinstance(error, NoClipError):
                broken.append(BrokenTar(printable(str(path)), str(error)))
                continue
            wrong = wrong or error
            if wrong and begun:
                raise wrong
            if not clips:
                rejected.append(reject(path, str(error or "a tar that holds no clip")))
            rejected += empty
            for split, clip in clips:
                frames.setdefault(split, []).extend(clip)
    finally:
        pool.shutdown(cancel_futures=True)
    if begun and not skip_broken:
        refuse_broken(broken)
    return frames, broken + rejected


def _clips(
    tar: Place, *, others: bool
) -> tuple[list[tuple[str, list[TarFrame]]], list[Rejected], FrameError | None]:
    """Returns split and frames of the clips of a tar, up to what is wrong with it.

    And of a tar that `others` have made its images and films, and samples without any.
    """
    clips = []
    try:
        for clip in read_clips(tar):
            clips.append(clip)
    except NoClipError as error:
        if clips or not others:
            return clips, [], error
        try:
            frames, empty = read_others(tar)
        except FrameError as wrong:
            return [], [], wrong
        if not frames:
            kinds = f"image ({', '.join(IMAGES)}) or video ({', '.join(FILMS)})"
            why = f"{empty[0].name} {empty[0].reason}." if empty else error
            error = NoClipError(f"{tar} holds no {kinds} of use, and no clip: {why}")
        return [(split_of(tar), frames)], empty, None if frames else error
    except FrameError as error:
        return clips, [], error
    return clips, [], None


def read_clips(tar: Place) -> Iterator[tuple[str, list[TarFrame]]]:
    """Yields split and frames of every clip of a tar.

    Raises FrameError, naming the place, if it is no tar of clips or would lead anywhere else:
    NoClipError if its samples are not ours.
    """
    for _, sample in read_samples(tar, FrameError):
        if films := films_of(sample):
            raise NoClipError(f"{sample[films[0]]} is a video, so this is no clip of images.")
        about = sample.pop("json", None)
        if about is None:
            first = next(iter(sample.values()))
            raise NoClipError(f"{first} belongs to no clip: there is no .json beside it.")
        record = parse_json(about.read_text(FrameError), about, FrameError, "clip")
        split, names = record.get("split"), record.get("frames")
        if not {"split", "frames"} & record.keys():
            raise NoClipError(f"{about} names neither a split nor frames, so this is no clip.")
        for member in sample.values():
            if not NAME.fullmatch(member.name):
                raise FrameError(f"{member} is no name of a frame (0001.00001.png); refused.")
        if not isinstance(split, str) or split not in SPLITS or not isinstance(names, list):
            raise FrameError(f"{about} names no split of {', '.join(SPLITS)}, or no frames.")
        if len(names) != len(sample):
            raise FrameError(f"{about} names {len(names)} frames, but there are {len(sample)}.")
        frames = []
        for name, member in zip(names, sample.values(), strict=True):
            path = PurePosixPath(name if isinstance(name, str) else "/")
            if path.is_absolute() or ".." in path.parts:
                raise FrameError(f"{about}: the frame {name!r} leads out of the folder; refused.")
            frames.append(TarFrame(member, path))
        yield split, frames


def read_others(tar: Place) -> tuple[list[TarFrame], list[Rejected]]:
    """Returns the images and films of a tar that others have made, and what of it is not used.

    Each is named as if it lay in a folder: several images of one sample in one of their own. Raises
    FrameError for what no sample can hold.
    """
    frames: list[TarFrame] = []
    empty: list[Rejected] = []
    keyless: list[Member] = []
    for key, sample in read_samples(tar, FrameError, keyless=keyless):
        if "json" in sample and _is_clip(sample["json"]):
            raise FrameError(f"{sample['json']} is of a clip, but not all before it is; refused.")
        images, films = frames_of(key, sample), films_of(sample)
        if why := why_not_all(len(films), len(images)):
            empty.append(reject(f"{tar}: {key}", why))
        if len(films) == 1:
            frames.append(FilmFile(sample[films[0]], PurePosixPath(f"{key}.{films[0]}")))
        elif not films:
            frames += images
    return frames, empty + reject_keyless(keyless, (*FILMS, *IMAGES))


def films_of(sample: Mapping[str, Member]) -> list[str]:
    """Returns the extensions of the videos of one sample."""
    return [ext for ext in sample if f".{ext}" in FILMS]


def why_not_all(num_films: int, num_images: int) -> str:
    """Says what of a sample of others is not used, if anything is not: one picture is a cover."""
    if num_films > 1:
        return f"holds {num_films} videos"
    if num_films and num_images > 1:
        return f"holds {num_images} images beside its video, which alone is kept"
    return "" if num_films or num_images else "holds neither a video nor an image"


def reject_keyless(members: Sequence[Member], extensions: Sequence[str]) -> list[Rejected]:
    """Rejects what would be of use if its name had a key; what else has none is a hidden file."""
    reason = "its name is an extension alone: there is no key, such as KEY in KEY.mp4"
    names = ((member, PurePosixPath(member.name).name.lower()) for member in members)
    return [reject(member, reason) for member, name in names if name in extensions]


def _is_clip(about: Member) -> bool:
    """Says whether a .json is what we write beside a clip."""
    try:
        record = parse_json(about.read_text(FrameError), about, FrameError, "sample")
    except FrameError:
        return False
    return {"split", "frames"} <= record.keys()


def frames_of(key: str, sample: Mapping[str, Member]) -> list[TarFrame]:
    """Returns the images of one sample of others."""
    images = {ext: m for ext, m in sample.items() if PurePosixPath(f"x.{ext}").suffix in IMAGES}
    numbered = {ext: match for ext in images if (match := NUMBERED.fullmatch(ext))}
    if not numbered:
        return [TarFrame(m, PurePosixPath(f"{key}.{ext}")) for ext, m in images.items()]
    name = PurePosixPath(key).name
    return [
        TarFrame(images[ext], PurePosixPath(key, f"{name}_{match[1]}{match[2]}"))
        for ext, match in numbered.items()
    ]


def split_of(tar: Place) -> str:
    """Returns the split that a tar of others is for, by its folder or the begin of its name."""
    *_, folder, name = ("", *PurePosixPath(tar).parts)
    words = {folder, *re.split(r"[^a-z]", name)[:1]}
    return "test" if "test" in words else "train"
