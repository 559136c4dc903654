"""Which clips a report shows: real ones beside their reconstructions, new ones, previews."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from pipeline.errors import PipelineError
from pipeline.evaluation.copying import decoded_pair
from pipeline.evaluation.sets import one_window_each, real_halves, window_places
from pipeline.store.reader import TokenStore

Clip = UInt8[np.ndarray, "T H W 3"]
Tokens = Int[np.ndarray, "B t h w"]
Decode = Callable[[Tokens], list[Clip]]

SHOWN_PAIRS = 8
SHOWN_SAMPLES = 32
"""Samples shown, those beside the pairs included."""
SHOWN_PREVIEWS = 8
"""Steps of training whose previews are shown, the first and the last included."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A real clip and what the tokenizer makes of it."""

    name: str
    real: Clip
    reconstruction: Clip


@dataclass(frozen=True, kw_only=True)
class NearestPair:
    """A new video and the training clip that is nearest to it, where they overlap."""

    name: str
    """Of the training clip."""
    sample: Clip
    training: Clip
    distance: float
    """Share of tokens that differ."""


def reconstructed_pairs(
    store: TokenStore, split: str, read: Callable[[str, str, int], Clip], decode: Decode
) -> list[Pair]:
    """Decodes windows of as many different videos as there are, beside their real pixels.

    `read` returns the pixels of a window by split, video and first frame.
    """
    plan = store.plan(split)
    halves = real_halves(store, split, limit=SHOWN_PAIRS // 2, seed=0)
    pairs = []
    for row in sorted(halves[0] + halves[1]):
        video, first = (plan[column][row].as_py() for column in ("video", "first_frame"))
        (reconstruction,) = decode(store.read(split, row, row + 1))
        real = read(split, video, first)
        name = f"{video}, frame {first}"
        pairs.append(Pair(name=name, real=real, reconstruction=reconstruction))
    return pairs


def first_samples(samples: TokenStore, decode: Decode) -> list[Clip]:
    """Decodes the first samples, not the best ones."""
    return decode(samples.read(samples.splits[0], 0, SHOWN_SAMPLES))


def nearest_pairs(
    store: TokenStore, samples: TokenStore, copying: Mapping[str, Any], decode: Decode
) -> list[NearestPair]:
    """Decodes the samples nearest to training, and the training windows that they are near to."""
    pairs = []
    for nearest in copying.get("pairs", []):
        number, row = nearest["sample"], nearest["row"]
        if not (
            0 <= number < samples.num_windows(samples.splits[0])
            and 0 <= row < store.num_windows("train")
            and abs(nearest["shift"]) < store.grid[0]
        ):
            raise PipelineError(
                f"sample {number}, row {row} and shift {nearest['shift']} of the nearest pairs in "
                "the metrics are not of these samples and tokens; evaluate them again."
            )
        sample = samples.read(samples.splits[0], number, number + 1)
        places = window_places(store, samples)
        (window,) = one_window_each(sample, store.grid[0], number, places)
        (other,) = store.read("train", row, row + 1)
        ours, theirs = decoded_pair(window, other, nearest["shift"], decode)
        name = f"new video {number + 1}; {nearest['video']}, frame {nearest['first_frame']}"
        pairs.append(
            NearestPair(name=name, sample=ours, training=theirs, distance=nearest["distance"])
        )
    return pairs


def preview_clips(previews: Mapping[int, Tokens], decode: Decode) -> dict[int, list[Clip]]:
    """Decodes previews of steps evenly spread over those there are."""
    steps = list(previews)
    places = np.linspace(0, len(steps) - 1, min(SHOWN_PREVIEWS, len(steps))).round().astype(int)
    return {steps[place]: decode(previews[steps[place]]) for place in places}
