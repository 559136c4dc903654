"""Where frames are: in a folder, in a bucket, or in tars that are named one by one."""

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from braceexpand import alphabet, braceexpand

from pipeline.errors import FrameError
from pipeline.frames.tars import SUFFIX
from pipeline.storage.places import Place, is_remote

MAX_TARS = 1_000_000
"""Names that a pattern may stand for."""
BRACES = re.compile(
    r"\\.|\{(?:(-?\d+)\.\.(-?\d+)|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?(\d+))?\}|[{},]", re.DOTALL
)
"""What counts in a pattern: an escaped character, a range of numbers or of letters, an edge."""


@dataclass(frozen=True)
class Tars:
    """Tars that one word names."""

    word: str
    tars: tuple[Place, ...]

    def __str__(self) -> str:
        return self.word


Frames = Place | Tars


def named_frames(word: str) -> Frames:
    """Returns the folder that a word names, or the tars; see `expand`, whose errors it raises."""
    places = expand([word])
    if len(places) == 1 and is_folder(places[0]):
        return places[0]
    return Tars(word, tuple(places))


def places_of(frames: Frames | None) -> Sequence[Place]:
    """Returns the folder, or each tar."""
    if isinstance(frames, Tars):
        return frames.tars
    return [] if frames is None else [frames]


def folder_of(frames: Frames) -> Place | None:
    """Returns where files beside frames lie; None: the tars have no folder in common."""
    if not isinstance(frames, Tars):
        return frames
    first, *others = dict.fromkeys(
        tar.parent if isinstance(tar, Path) else tar.rpartition("/")[0] for tar in frames.tars
    )
    return None if others else first


def expand(words: Sequence[str]) -> list[Place]:
    """Returns the places that words name: each a folder, a tar or a pattern of tars, or in S3.

    A pattern is as of a shell, `shards/{000..041}.tar`; what is there by that name is no pattern.
    Some tars of a pattern may be missing: whoever reads them says so, or skips them as broken.
    Raises FrameError, naming it, for what is not there or named twice, and for a folder beside
    anything else.
    """
    places: list[Place] = []
    for word in words:
        named = [name if is_remote(name) else Path(name) for name in _names(word)]
        if not any(is_remote(place) or Path(place).exists() for place in named):
            raise FrameError(f"{named[0]} does not exist.")
        places += named
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise FrameError(f"{twice[0]} is named twice.")
    for place in places:
        if is_folder(place) and len(places) > 1:
            raise FrameError(f"{place} is a folder; give one folder, or tars, but not both.")
        if not is_folder(place) and not is_tar(place):
            raise FrameError(f"{place} is neither a folder nor a .tar; give the folder it lies in.")
    return places


def _names(word: str) -> list[str]:
    with contextlib.suppress(OSError):  # A pattern may be longer than a name.
        if not is_remote(word) and Path(word).exists():
            return [word]
    try:
        count = _count_names(word)
        if count <= MAX_TARS:
            return list(braceexpand(word))
    except (ValueError, RecursionError):  # Braces that do not match: a name like any other.
        return [word]
    raise FrameError(f"{word} names more than {MAX_TARS:,} tars.")


def _count_names(pattern: str) -> int:
    """Counts the names of a pattern without making them: `braceexpand` holds most at once.

    Raises ValueError if braces do not match.
    """
    open_braces = [(0, 1)]  # Of each the names of the parts before this one, and of this one.
    for match in BRACES.finditer(pattern):
        done, count = open_braces[-1]
        if ".." in match[0]:
            first, last = match[1] or alphabet.index(match[3]), match[2] or alphabet.index(match[4])
            count *= abs(int(last) - int(first)) // max(1, int(match[5] or 1)) + 1
        elif match[0] == "," and len(open_braces) > 1:
            done, count = done + count, 1
        elif match[0] == "{":
            open_braces.append((0, 1))
            continue
        elif match[0] == "}":
            open_braces.pop()
            if not open_braces:
                raise ValueError("a brace is closed that none opened")
            names, (done, count) = done + count, open_braces[-1]
            count *= names
        open_braces[-1] = (done, count)
    if open_braces[1:]:
        raise ValueError("a brace is never closed")
    return open_braces[0][1]


def is_folder(place: Place) -> bool:
    """Says whether a place is a folder, or may be one in a bucket."""
    return place.is_dir() if isinstance(place, Path) else not is_tar(place)


def is_tar(place: Place) -> bool:
    """Says whether a place is a tar by its name."""
    return PurePosixPath(place).suffix.lower() == SUFFIX
