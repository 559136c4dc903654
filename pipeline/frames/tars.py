"""Clips in WebDataset tars: one sample per clip: its images in order, and a JSON.

A sample is `KEY.json`, which says {"split": …, "frames": [names in a frame folder]}, and one
`KEY.00000.png` and so on for each frame. Keys are a split and numbers, unique over all tars of one
set: names of videos may hold dots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import FrameError
from pipeline.storage.files import parse_json, printable, to_json
from pipeline.storage.places import Place
from pipeline.storage.tars import Member, add, new_tar, read_samples

SUFFIX = ".tar"


@dataclass(frozen=True)
class TarFrame:
    """An image inside a tar, and its name in a frame folder."""

    member: Member
    path: PurePosixPath

    def __str__(self) -> str:
        return f"{self.member} ({printable(str(self.path)[:200])})"


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
                while mine and (not count or tar.offset < limit):
                    frames = mine.pop(0)
                    key = f"{split}-{number:05d}-{part:03d}-{count:06d}"
                    add(tar, f"{key}.json", to_json({"split": split, "frames": list(frames)}))
                    for index, frame in enumerate(frames):
                        add(tar, f"{key}.{index:05d}{Path(frame).suffix}", folder / frame)
                    count += 1
    return written


def read_clips(tar: Place, splits: Sequence[str]) -> Iterator[tuple[str, list[TarFrame]]]:
    """Yields split and frames of every clip of a tar.

    Raises FrameError, naming the place, if it is no tar of clips or would lead anywhere else.
    """
    for sample in read_samples(tar, FrameError):
        about = sample.pop("json", None)
        if about is None:
            first = next(iter(sample.values()))
            raise FrameError(f"{first} belongs to no clip: there is no .json beside it.")
        record = parse_json(about.read_text(FrameError), about, FrameError, "clip")
        split, names = record.get("split"), record.get("frames")
        if not isinstance(split, str) or split not in splits or not isinstance(names, list):
            raise FrameError(f"{about} names no split of {', '.join(splits)}, or no frames.")
        if len(names) != len(sample):
            raise FrameError(f"{about} names {len(names)} frames, but there are {len(sample)}.")
        frames = []
        for name, member in zip(names, sample.values(), strict=True):
            path = PurePosixPath(name if isinstance(name, str) else "/")
            if path.is_absolute() or ".." in path.parts:
                raise FrameError(f"{about}: the frame {name!r} leads out of the folder; refused.")
            frames.append(TarFrame(member, path))
        yield split, frames
