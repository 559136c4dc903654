"""Videos in WebDataset tars of others: one a sample, as a video or as images, with texts beside.

So video2dataset and the Hugging Face hub publish them: `KEY.mp4` beside `KEY.json`, `KEY.txt` and
`KEY.cls`. Or `KEY.00000.jpg` and so on; or one image a sample, the video and its number in the key.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.condition_files import MAX_TEXT, VideoTexts
from pipeline.config import fingerprint
from pipeline.errors import FrameError
from pipeline.frames.images import Frame, read_images
from pipeline.frames.scan import Video, group_frames
from pipeline.frames.tars import (
    FILMS,
    IMAGES,
    Rejected,
    TarFrame,
    films_of,
    frames_of,
    reject,
    reject_keyless,
    why_not_all,
)
from pipeline.sample_texts import add_text, read_texts
from pipeline.storage.files import printable
from pipeline.storage.places import Place, is_remote
from pipeline.storage.tars import TEXTS, Member, read_samples
from pipeline.video.clips import Source
from pipeline.video.films import lent, read_film
from pipeline.video.footage import About
from pipeline.video.tiles import ExtractConfig


@dataclass
class Shards:
    """What a set of tars holds."""

    config: ExtractConfig
    scratch: Path
    """Folder for the video that is being decoded: FFmpeg reads files."""
    videos: list[Source] = field(default_factory=list)
    """By names that may not be free."""
    rejected: list[Rejected] = field(default_factory=list)
    images: dict[str | None, list[TarFrame]] = field(default_factory=dict)
    """By split."""
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By the path of a sample's first image."""
    stamps: dict[str, object] = field(default_factory=dict)
    """What tells the content of a tar from any other."""
    keyless: list[Member] = field(default_factory=list)
    """Members whose names are an extension alone."""

    def add(self, tar: Place, name: str, stamp: object, *, split: str | None) -> None:
        """Lists the samples of a tar. Raises FrameError, naming it, where it is damaged.

        Samples before that place are listed.
        """
        self.stamps[str(tar)] = stamp
        for key, sample in read_samples(tar, FrameError, keyless=self.keyless):
            source = f"{tar}: {printable(key)}"
            texts = {"source": source, **self._short_texts(sample, source)}
            videos, frames = films_of(sample), frames_of(key, sample)
            if why := why_not_all(len(videos), len(frames)):
                self.rejected.append(reject(source, why))
            if len(videos) == 1:
                member = sample[videos[0]]
                content = fingerprint([stamp, member.offset, member.size])
                place = (member, f".{videos[0]}", self.scratch)
                read = partial(read_film, *place, **self.config.reading)
                lend = partial(lent, *place)
                self.videos.append(Source(f"{name}/{key}", content, read, split, texts, lend=lend))
            elif videos or not frames:
                continue
            elif self.config.fps or self.config.filters:
                why = "images, which have no times: extract.fps and extract.filters need videos"
                self.rejected.append(reject(source, why))
            else:
                self.images.setdefault(split, []).extend(frames)
                self.texts[str(frames[0].path)] = texts

    def _short_texts(self, sample: Mapping[str, Member], source: str) -> dict[str, str]:
        """Returns the texts of a sample, and says which are cut off."""
        texts, wrong = read_texts(sample)
        self.rejected += [reject(text, f"{why}; its video is kept") for text, why in wrong]
        for name, text in texts.items():
            if len(text) > MAX_TEXT:
                why = f"its {name} of {len(text):,} characters is cut off after {MAX_TEXT:,}"
                self.rejected.append(reject(source, f"{why}; its video is kept"))
                texts[name] = text[:MAX_TEXT]
        return texts

    def sources(self) -> Iterator[Source]:
        """Yields all videos, those made of images last; all that is rejected is known then."""
        self.rejected += reject_keyless(self.keyless, (*FILMS, *IMAGES, *TEXTS))
        yield from self.videos
        for split, frames in self.images.items():
            grouped, rejected = group_frames(frames, split=split or "", root=Path())
            self.rejected += rejected
            for video in grouped:
                members = [frame for frame in video.frames if isinstance(frame, TarFrame)]
                places = [(f.member.tar, f.member.offset, f.member.size) for f in members]
                content = fingerprint([[self.stamps[tar], *place] for tar, *place in places])
                as_stored = self.config.as_stored
                read = partial(read_as_video, members, video.numbering, as_stored=as_stored)
                texts = self.texts.get(str(members[0].path), {})
                yield Source(video.name, content, read, split, texts)


def read_as_video(
    frames: Sequence[TarFrame], numbering: str, *, as_stored: bool, about: About, threads: int
) -> Iterator[Frame]:
    """Yields images of a tar as the frames of a video, of which nobody knows the rate.

    `numbering` is what is to be said of their numbers.
    """
    if numbering:
        about.notes["numbering"] = numbering
    for image in read_images(frames, as_stored=as_stored):
        yield np.asarray(image)


def image_texts(videos: Sequence[Video], name: str) -> VideoTexts:
    """Returns what lies beside the first images of videos in tars, by SPLIT/NAME of the video.

    Raises FrameError if a tar cannot be read.
    """
    named: dict[tuple[str, str], str] = {}
    for video in videos:
        if isinstance(image := video.frames[0], TarFrame):
            named[image.member.tar, image.member.name] = f"{video.split}/{video.name}"
    found = VideoTexts(name)
    for tar in dict.fromkeys(tar for tar, _ in named):
        for key, sample in read_samples(tar if is_remote(tar) else Path(tar), FrameError):
            places = [(member.tar, member.name) for member in sample.values()]
            if mine := [named[place] for place in places if place in named]:
                add_text(found, mine, sample, f"{tar}: {key}")
    return found
