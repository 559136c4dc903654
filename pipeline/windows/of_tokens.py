"""The pixels of the windows that tokens were made of."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FrameError
from pipeline.frame_list import difference, source_of
from pipeline.frames.given import Frames
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import FrameFolder
from pipeline.frames.tars import describe_broken
from pipeline.metrics import psnr, squared_error
from pipeline.store.reader import TokenStore, spread_rows
from pipeline.windows.plan import TokenizeConfig, WindowReader


def check_source(store: TokenStore, found: FrameFolder, place: Frames) -> None:
    """Raises FrameError, naming what differs, unless the tokens were made of these videos."""
    frames = list_frames(found.videos, place)
    if source_of(frames) == store.info.source:
        return
    before = store.made_from
    which = "" if before is None else f": {difference(before, frames)}"
    broken = "".join(f"{line}. " for line in describe_broken(found.rejected))
    raise FrameError(
        f"{place} does not hold the frames that {store.root} was made from{which}. {broken}"
        "Give those, or bring the tokens up to date with `mebt tokenize --update`."
    )


def window_reader(found: FrameFolder, place: Frames, store: TokenStore) -> WindowReader:
    """Reads the windows that tokens were made of. Raises FrameError if they are of other frames."""
    check_source(store, found, place)
    info = store.info
    assert info.frames and info.stride and info.size, "tokens made from frames know their window"
    window = TokenizeConfig(
        frames=info.frames, stride=info.stride, size=info.size, as_stored=info.as_stored
    )
    return WindowReader(found.videos, window)


def reconstruction_psnr(
    store: TokenStore,
    reader: WindowReader,
    decode: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    most: int,
) -> float:
    """Returns the PSNR of windows spread over the held-out split, or of train without one."""
    split = store.splits[-1]
    plan = store.plan(split)
    errors = []
    for row in spread_rows(store.num_windows(split), most):
        (window,) = plan.slice(row, 1).to_pylist()
        real = reader.pixels(split, window["video"], window["first_frame"])
        errors.append(squared_error(real, decode(store.read(split, row, row + 1))[0]))
    return psnr(math.fsum(errors) / len(errors))
