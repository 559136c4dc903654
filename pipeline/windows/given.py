"""What is known of the windows of videos, brought from files to the rows of a plan."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.condition_files import (
    LABEL,
    VideoTexts,
    file_bytes,
    is_label,
    read_states,
    read_video_texts,
)
from pipeline.errors import PipelineError, TokenStoreError
from pipeline.frames.given import Frames, folder_of
from pipeline.frames.scan import Video, frame_numbers
from pipeline.known_videos import PIECE, Key
from pipeline.storage.places import Place, open_storage
from pipeline.store.given import Given, GivenStates, text_rows
from pipeline.store.layout import PLAN, StoreInfo, hash_plan
from pipeline.store.reader import TokenStore
from pipeline.store.states import STATES_HASH
from pipeline.video.beside import STATES, VIDEOS
from pipeline.video.shards import image_texts

TextsFrom = Path | Literal["beside", "folders"]
Texts = Mapping[str, TextsFrom | None]
"""Where labels and captions come from, by these names; only labels from folders."""
StatesFrom = Path | Literal["beside"]


def conditioned(
    info: StoreInfo,
    plan: pa.Table,
    videos: Sequence[Video],
    frames: Frames,
    *,
    texts: Texts,
    states: StatesFrom | None,
) -> tuple[StoreInfo, Given]:
    """Adds texts and states to what a store of these windows is to hold.

    Raises PipelineError, naming the file, if it knows none of the videos or holds something else.
    """
    plan, said = text_plan(plan, videos, frames, texts)
    if states is None:
        return info, Given(plan, said)
    made = _given_states(info, plan, videos, frames, states)
    extra = {**info.extra, **made.extra()}
    return replace(info, extra=extra), Given(plan, [*said, *made.said()], made.table)


def text_plan(
    plan: pa.Table, videos: Sequence[Video], frames: Frames, texts: Texts
) -> tuple[pa.Table, list[str]]:
    """Adds labels and captions to the rows of a plan; returns also what is to be said of them.

    Raises PipelineError if nothing is known of these videos, or what is known are no labels.
    """
    keys = [(video.split, video.name) for video in videos]
    said: list[str] = []
    for name, given in texts.items():
        if given:
            place, known = _texts(videos, frames, name, given)
            plan, lines = text_rows(plan, place, known, keys)
            said += lines
    return plan, said


def _texts(
    videos: Sequence[Video], frames: Frames, name: str, given: TextsFrom
) -> tuple[object, VideoTexts]:
    """Returns the labels or captions of videos, and the place that they come from."""
    if given == "folders":
        keys = [(video.split, video.name) for video in videos]
        return frames, VideoTexts(LABEL, folder_labels(frames, keys))
    folder = folder_of(frames)
    has_file = folder is not None and VIDEOS in open_storage(folder).names()
    if given == "beside" and not has_file:
        beside = image_texts(videos, name)
        if beside.texts:
            return frames, beside
    place, data = _file(frames, VIDEOS, given)
    return place, read_video_texts(place, data, name)


def _file(frames: Frames, name: str, given: Path | str) -> tuple[Place, bytes]:
    """Reads a file that is given, or that `extract` left beside the frames."""
    if isinstance(given, Path):
        return given, file_bytes(given)
    folder = folder_of(frames)
    if folder is not None:
        storage = open_storage(folder)
        with suppress(FileNotFoundError):
            return storage.place(name), storage.read(name)
    raise PipelineError(
        f"{frames} has no {name}, which `mebt extract` leaves where it finds any, and nothing lies "
        "beside images or videos in tars. Give a file."
    )


def folder_labels(frames: Frames, videos: Sequence[Key]) -> dict[str, str]:
    """Returns the name of the folder that each video lies in, by its own name.

    A folder may hold several videos, or each video may be a folder, and its frames be named else.
    Raises PipelineError if no video lies in any.
    """
    parts = {
        name: PurePosixPath(name.removeprefix(f"{split}/")).parts
        for split, name in ((split, PIECE.sub("", name)) for split, name in videos)
    }
    held = Counter(PurePosixPath(name).parent for name in parts)
    alone = max(held.values()) == 1 and min(map(len, parts.values())) > 2
    depth = 3 if alone else 2
    found = {name: path[-depth] for name, path in parts.items() if len(path) >= depth}
    found = {name: label for name, label in found.items() if is_label(label)}
    if not found:
        raise PipelineError(
            f"{frames}: no video lies in a folder that could be its label; give a file of labels."
        )
    return found


def _given_states(
    info: StoreInfo, plan: pa.Table, videos: Sequence[Video], frames: Frames, given: StatesFrom
) -> GivenStates:
    """Reads states of frames, which are known by the number in their names."""
    assert info.frames and info.stride, "tokens made from frames know their window"
    offsets = np.arange(info.frames) * info.stride
    known = {(video.split, video.name): video for video in videos}

    @lru_cache(1)
    def numbers(key: Key) -> NDArray[np.int64]:
        return frame_numbers(known[key])

    def frames_of(key: Key, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
        frames: NDArray[np.int64] = numbers(key)[firsts[:, None] + offsets]
        return frames

    file = read_states(*_file(frames, STATES, given))
    return GivenStates(info, plan, file, info.frames, frames_of)


def conditioned_again(
    store: TokenStore,
    plan: pa.Table,
    videos: Sequence[Video],
    frames: Frames,
    *,
    texts: Texts,
    states: StatesFrom | None,
) -> Given:
    """Returns the plan and the states that a store was made with, whatever became of its files.

    They are taken from the store unless they are given. Raises TokenStoreError if those given are
    others, or if a plan with texts is damaged and not all are given.
    """
    what = "these are not"
    try:
        plan = store.plan()
    except TokenStoreError:
        what = f"{PLAN} is damaged; give"
    plan, _ = text_plan(plan, videos, frames, texts)
    if hash_plan(plan) != store.plan_hash:
        raise TokenStoreError(
            f"{store.root}: {what} the --labels and --captions that it was made with."
        )
    if states is None:
        return Given(plan, states=store.states)
    made = _given_states(store.info, plan, videos, frames, states)
    if made.extra()[STATES_HASH] != store.info.extra.get(STATES_HASH):
        raise TokenStoreError(f"{store.root}: these are not the --states that it was made with.")
    return Given(plan, states=made.table)
