"""Labels, captions and states of ids of others, from files that name their videos."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.condition_files import VideoTexts, file_bytes, read_states, read_video_texts
from pipeline.errors import PipelineError
from pipeline.exchange.ids import Ids, Maker
from pipeline.exchange.windows import IMPORTED, Cut
from pipeline.known_videos import Key, told
from pipeline.sample_texts import KINDS
from pipeline.store.given import GivenStates, text_found, text_rows
from pipeline.store.layout import StoreInfo
from pipeline.store.tables import videos_of

ROW = re.compile(r"((?:train/|test/)?)(\d{1,12})", re.ASCII)
"""How a file may call a window of no known video: by its row."""
Known = TypeVar("Known")


def text_in_file(
    plan: pa.Table, name: str, file: Path, *, windows: bool
) -> tuple[pa.Table, list[str]]:
    """Adds labels or captions to a plan, of videos or of `windows` by their rows.

    Returns also what is to be said. Raises PipelineError, naming the file, if it knows none of
    them.
    """
    known = read_video_texts(file, file_bytes(file), name)
    if windows:
        known = replace(known, texts=_by_rows(known.texts))
    return text_rows(plan, file, known, videos_of(plan))


def text_beside(
    plan: pa.Table, name: str, sources: Mapping[str, Ids]
) -> tuple[pa.Table, list[str]]:
    """Adds the labels or captions that lie beside ids to a plan; returns what is to be said.

    `sources` are by split; without one for the test, it has the ends of the others' videos. Raises
    PipelineError, naming them, if they have none of any window.
    """
    videos = videos_of(plan)
    beside = {split: ids.texts.get(name, VideoTexts(name)) for split, ids in sources.items()}
    (first, *_) = beside.values()
    found = {
        (split, video): text
        for split, video in videos
        if (text := beside.get(split, first).texts.get(video))
    }
    said = [line for known in beside.values() for line in known.said()]
    places = " and ".join(str(ids.place) for ids in sources.values())
    if not found:
        such = f"; for example {said[0]}" if said else ""
        kinds = " or ".join(f".{kind}" for kind in KINDS[name])
        raise PipelineError(
            f"{places}: no {kinds} beside ids in tars holds a {name}{such}. Give a file."
        )
    plan, what = text_found(plan, places, name, found)
    return plan, [*told(what, {}, found, videos), *said]


def _by_rows(known: Mapping[str, Known]) -> dict[str, Known]:
    named = {}
    for name, what in known.items():
        row = ROW.fullmatch(name)
        named[f"{row[1]}{IMPORTED}-{int(row[2]):05d}" if row else name] = what
    return named


def given_states(
    info: StoreInfo, plan: pa.Table, path: Path, ids: Ids, cut: Cut, maker: Maker | None
) -> GivenStates:
    """Brings numbers of frames, counted from 0 in each video or window, to the rows of a plan.

    Frames are those of the video if files or `maker` say how many of them a token is of, else
    latent ones. Raises PipelineError if the ids come with states, or none is of these videos.
    """
    if ids.videos[0].states:
        raise PipelineError(f"{ids.place} comes with states of its own: give no --states.")
    file = read_states(path, file_bytes(path))
    if ids.are_windows:
        file = replace(file, videos=_by_rows(file.videos))

    def frames_of(_: Key, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
        return window_frames(firsts // ids.unit, ids, cut, maker)

    frames = window_frames(np.zeros(1, np.int64), ids, cut, maker).shape[1]
    return GivenStates(info, plan, file, frames, frames_of)


def window_frames(
    firsts: NDArray[np.int64], ids: Ids, cut: Cut, maker: Maker | None
) -> NDArray[np.int64]:
    """Returns the frames that windows are of [n, frames], given their first units in a video [n].

    Of a causal tokenizer, latent frame k is frame k * d of the video and those before it, as far
    as it is of them; of the first in a window, it is that frame alone.
    """
    units = firsts[:, None] + np.arange(cut.units) * cut.stride
    if maker is None or ids.frames:
        each = ids.frames or ids.unit
    elif ids.are_windows:
        each = maker.frames(ids.unit)
    else:
        each = maker.downsample[0]
    of_unit = np.arange(each)
    behind = maker is not None and maker.causal and not ids.frames and not ids.are_windows
    frames = (units[..., None] * each + of_unit - (each - 1) * behind).reshape(len(firsts), -1)
    return frames[:, (each - 1) * behind :]
