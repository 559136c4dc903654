"""The pixels of the windows that tokens were made of."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import FrameError
from pipeline.frame_list import difference, source_of
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import Video
from pipeline.metrics import psnr, squared_error
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore, spread_rows
from pipeline.windows.plan import TokenizeConfig, WindowReader


def check_source(store: TokenStore, videos: Sequence[Video], folder: Place) -> None:
    """Raises FrameError, naming what differs, unless the tokens were made of these videos."""
    frames = list_frames(videos, folder)
    if source_of(frames) == store.info.source:
        return
    before = store.made_from
    which = "" if before is None else f": {difference(before, frames)}"
    raise FrameError(
        f"{folder} does not hold the frames that {store.root} was made from{which}. Give those, or "
        "bring the tokens up to date with `mebt tokenize --update`."
    )


def window_reader(videos: Sequence[Video], folder: Place, store: TokenStore) -> WindowReader:
    """Reads the windows that tokens were made of. Raises FrameError if they are of other frames."""
    check_source(store, videos, folder)
    info = store.info
    assert info.frames and info.stride and info.size, "tokens made from frames know their window"
    window = TokenizeConfig(
        frames=info.frames, stride=info.stride, size=info.size, as_stored=info.as_stored
    )
    return WindowReader(videos, window)


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
