"""Which videos a file of labels or states knows, and what is to be said of the others."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from pipeline.condition_files import named
from pipeline.errors import PipelineError

PIECE = re.compile(r"#\d+$", re.ASCII)
"""Ends the name of a piece of a video with gaps."""
Key = tuple[str, str]
"""Split and name of a video."""
Found = TypeVar("Found")


def matched(place: object, known: Mapping[str, Found], videos: Sequence[Key]) -> dict[Key, Found]:
    """Returns what is known of each of these videos, but for those of which nothing is.

    A file may call a video by its name, with or without its split, and pieces of a video by the
    name of the whole. Raises PipelineError if it knows none of them.
    """
    found: dict[Key, Found] = {}
    for key in videos:
        name = next((name for name in other_names(*key) if name in known), None)
        if name is not None:
            found[key] = known[name]
    if not found:
        theirs, ours = named(next(iter(known), None)), named(videos[0][1])
        raise PipelineError(f"{place} names none of the videos: it has {theirs}, they are {ours}.")
    return found


def other_names(split: str, video: str) -> Iterator[str]:
    """Yields the names by which a file may call a video."""
    for name in dict.fromkeys((video, PIECE.sub("", video))):
        yield from (name, name.removeprefix(f"{split}/"), f"{split}/{name}")


def told(
    what: str, known: Mapping[str, object], found: Collection[Key], videos: Sequence[Key]
) -> list[str]:
    """Says of how many videos something is known, and what of it is of no video."""
    without = [video for split, video in videos if (split, video) not in found]
    said = f"{what} of {len(found):,} of {len(videos):,} videos"
    lines = [said + (f"; without: {_some(without)}" if without else "")]
    used = {name for key in videos for name in other_names(*key)}
    if unused := [name for name in known if name not in used]:
        lines.append(f"{what} also of videos that are not there: {_some(unused)}")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1:,} more" if names[1:] else ""
    return f"{named(names[0])}{more}"
