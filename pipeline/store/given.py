"""Labels, captions and states that were given in files, brought to the rows of a plan."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.condition_files import FrameNumbers, StatesFile, VideoTexts
from pipeline.known_videos import Key, matched, told
from pipeline.store.layout import StoreInfo
from pipeline.store.states import STATES_HASH, empty_states, hash_states, states_of
from pipeline.store.tables import different_texts, videos_of, with_texts

StatesOf = Callable[[str, int], pa.Table | None]
"""Returns the table with the states of a shard, given its split and number."""
FramesOf = Callable[[Key, NDArray[np.int64]], NDArray[np.int64]]
"""Returns which frames of a video windows are of [n, frames], given their first in the plan [n]."""

Found = tuple[NDArray[np.int64], FrameNumbers, NDArray[np.int64], NDArray[np.bool_]]
"""Places of windows, numbers of their video, rows in these [n, frames], and which are known."""


def no_states(split: str, shard: int) -> None:
    """Is the `StatesOf` a store without any."""


@dataclass(frozen=True)
class Given:
    """What was given, as a store keeps it."""

    plan: pa.Table
    """With labels and captions, if any are known."""
    said: list[str] = field(default_factory=list)
    """Of what is known, and what is not."""
    states: StatesOf = no_states


def text_rows(
    plan: pa.Table, place: object, known: VideoTexts, videos: Sequence[Key]
) -> tuple[pa.Table, list[str]]:
    """Adds labels or captions to a plan; returns also what is to be said of them.

    See `matched`, whose errors it raises.
    """
    found = matched(place, known.texts, videos)
    plan, what = text_found(plan, place, known.name, found)
    return plan, [*told(what, known.texts, found, videos), *known.said()]


def text_found(
    plan: pa.Table, place: object, name: str, found: Mapping[Key, str]
) -> tuple[pa.Table, str]:
    """Adds texts of videos by split and name to a plan; returns also how many there are."""
    rows = zip(plan["split"].to_pylist(), plan["video"].to_pylist(), strict=True)
    plan = with_texts(plan, name, [found.get(key) for key in rows])
    texts = different_texts(plan, name)
    return plan, f"{place}: {len(texts):,} {name}{'s' if texts[1:] else ''}"


class GivenStates:
    """The states of the windows of a plan.

    Raises PipelineError, naming the file, if it knows none of the videos, and as `states_of` does.
    """

    def __init__(
        self, info: StoreInfo, plan: pa.Table, file: StatesFile, frames: int, frames_of: FramesOf
    ) -> None:
        self.info, self.file, self.frames_of = info, file, frames_of
        self.states = states_of(info, frames, file)
        self.plans = {s: plan.filter(np.asarray(plan["split"]) == s) for s in info.counts}
        self.videos = videos_of(plan)
        self.found: Mapping[Key, FrameNumbers] = matched(file.place, file.videos, self.videos)

    def values(self, split: str, shard: int) -> dict[str, NDArray[np.float32]]:
        """Returns the numbers of a shard by name [n, frames, width]; NaN: not known."""
        start, stop = self.info.shard_rows(split, shard)
        made = empty_states(self.states, stop - start)
        for places, numbers, rows, known in self._known(split, start, stop):
            for name, values in numbers.values.items():
                picked = np.where(known[..., None], values[rows], np.float32(np.nan))
                made[name][places] = picked
        return made

    def table(self, split: str, shard: int) -> pa.Table:
        """Returns the table of a shard."""
        return self.states.table(self.info, split, shard, self.values(split, shard))

    def extra(self) -> dict[str, Any]:
        """Returns what the store says of them."""
        digest = hash_states(self.values(*shard) for shard in self.info.shards())
        return {**self.states.recorded(), STATES_HASH: digest}

    def said(self) -> list[str]:
        """Says of what there are numbers, of how many frames not all, and what is unused."""
        what = f"{self.file.place}: {self.file.said}"
        lines = told(what, self.file.videos, self.found, self.videos)
        used = {id(n): np.zeros(len(n.frames), bool) for n in self.found.values()}
        missing = {id(n): n.missing() for n in self.found.values()}
        unknown = partly = 0
        for split, count in self.info.counts.items():
            for _, numbers, rows, known in self._known(split, 0, count):
                used[id(numbers)][rows[known]] = True
                share = np.where(known, missing[id(numbers)][rows], 1)
                unknown += int((share == 1).sum())
                partly += int(((share > 0) & (share < 1)).sum())
        if unknown:
            lines.append(f"{what}: not of {unknown:,} frames of windows of these videos")
        if partly:
            lines.append(f"{what}: in part only of {partly:,} frames of windows of these videos")
        if unused := sum(int((~rows).sum()) for rows in used.values()):
            lines.append(f"{what}: also of {unused:,} frames that are in no window")
        return lines

    def _known(self, split: str, start: int, stop: int) -> Iterator[Found]:
        """Yields windows of each video: their places, its numbers, and where these are known."""
        rows = self.plans[split].slice(start, stop - start)
        videos, firsts = rows["video"].to_pylist(), rows["first_frame"].to_numpy()
        for name, group in itertools.groupby(range(len(videos)), videos.__getitem__):
            places = np.array(list(group))
            if (split, name) in self.found:
                numbers = self.found[split, name]
                frames = self.frames_of((split, name), firsts[places])
                yield (places, numbers, *numbers.find(frames))
