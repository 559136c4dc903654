"""What the windows of videos are conditioned on, brought from files to the rows of a plan."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.condition_files import file_bytes, is_label, read_labels, read_states
from pipeline.errors import PipelineError, TokenStoreError
from pipeline.frames.given import Frames, folder_of
from pipeline.frames.scan import Video, frame_numbers
from pipeline.known_videos import PIECE, Key
from pipeline.storage.places import Place, open_storage
from pipeline.store.given import Given, GivenStates, label_rows
from pipeline.store.layout import PLAN, StoreInfo, hash_plan
from pipeline.store.reader import TokenStore
from pipeline.store.states import STATES_HASH
from pipeline.video.beside import STATES, VIDEOS
from pipeline.video.shards import image_labels

LabelsFrom = Path | Literal["beside", "folders"]
StatesFrom = Path | Literal["beside"]


def conditioned(
    info: StoreInfo,
    plan: pa.Table,
    videos: Sequence[Video],
    frames: Frames,
    *,
    labels: LabelsFrom | None,
    states: StatesFrom | None,
) -> tuple[StoreInfo, Given]:
    """Adds labels and states to what a store of these windows is to hold.

    Raises PipelineError, naming the file, if it knows none of the videos or holds something else.
    """
    said: list[str] = []
    if labels:
        plan, said = label_plan(plan, videos, frames, labels)
    if states is None:
        return info, Given(plan, said)
    made = _given_states(info, plan, videos, frames, states)
    extra = {**info.extra, **made.extra()}
    return replace(info, extra=extra), Given(plan, [*said, *made.said()], made.table)


def label_plan(
    plan: pa.Table, videos: Sequence[Video], frames: Frames, labels: LabelsFrom
) -> tuple[pa.Table, list[str]]:
    """Adds labels to the rows of a plan; returns also what is to be said of them.

    Raises PipelineError if nothing is known of these videos, or what is known are no labels.
    """
    keys = [(video.split, video.name) for video in videos]
    if labels == "folders":
        return label_rows(plan, frames, folder_labels(frames, keys), keys)
    folder = folder_of(frames)
    has_file = folder is not None and VIDEOS in open_storage(folder).names()
    if labels == "beside" and not has_file:
        beside = image_labels(videos)
        if beside.labels:
            plan, said = label_rows(plan, frames, beside.labels, keys)
            return plan, [*said, *beside.said()]
    place, data = _file(frames, VIDEOS, labels)
    return label_rows(plan, place, read_labels(place, data), keys)


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
        "beside images in tars. Give a file."
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
    labels: LabelsFrom | None,
    states: StatesFrom | None,
) -> Given:
    """Returns the plan and the states that a store was made with, whatever became of its files.

    They are taken from the store unless they are given. Raises TokenStoreError if those given are
    others, or if a plan with labels is damaged and none are given.
    """
    if labels:
        plan, _ = label_plan(plan, videos, frames, labels)
    else:
        with suppress(TokenStoreError):
            plan = store.plan()
    if hash_plan(plan) != store.plan_hash:
        what = "these are not" if labels else f"{PLAN} is damaged; give"
        raise TokenStoreError(f"{store.root}: {what} the --labels that it was made with.")
    if states is None:
        return Given(plan, states=store.states)
    made = _given_states(store.info, plan, videos, frames, states)
    if made.extra()[STATES_HASH] != store.info.extra.get(STATES_HASH):
        raise TokenStoreError(f"{store.root}: these are not the --states that it was made with.")
    return Given(plan, states=made.table)
