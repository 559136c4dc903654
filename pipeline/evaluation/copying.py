"""Does a model copy what it was trained on? How near its samples come to training windows.

A sample is as far from a training window as the share of its tokens that this one does not have in
the same places; and as far from training as from the nearest window, which may begin earlier or
later. Tokens of bare ground, which nearly all windows have, are left out: see `Content`. How near
is too near depends on the world: a clip in which little moves is near to many others. So held-out
windows are measured too, as in Meehan et al. 2020 (A non-parametric test to detect data-copying in
generative models, arXiv 2004.05675). Their statistic, the Mann-Whitney z of both sets of distances
(in one cell), is reported, but is no verdict: with many windows it calls any small shift
significant, and held-out windows of one time differ from those of another (on the demo's footage by
a z of 4.4, though nobody copied). What copies comes nearer by far, so the verdict counts near
copies: windows at most half as far from training as the held-out one in the middle.

Three cases need eyes, for which a report shows the nearest pairs. A model that draws one still
picture again and again is flagged too, if training has that picture; one that draws empty videos is
not. And where most held-out windows are nearly equal to training ones, loose copies of the few
others pass for new.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import Clip, ComparedSets, Tokens, why_nothing_is_held_out
from pipeline.metrics import fisher_exact, mann_whitney, psnr, squared_error
from pipeline.store.reader import TokenStore

SHARES = ("copying_z", "near_copies_samples", "near_copies_real")
PIXELS = ("psnr_nearest_samples", "psnr_nearest_real")
COPYING_KEYS = ("train_distance_samples", "train_distance_real", *SHARES, *PIXELS)
MAX_WINDOWS = 256
"""Windows of each set that are measured: more take time and say little more."""
BLOCK_TOKENS = 1 << 20
"""Tokens of training windows that are compared at a time."""
CLOSEST = 6
"""Pairs that are compared in pixels and shown."""
CHANCE, EXCESS = 0.001, 0.1
"""A model is flagged if chance gives so many near copies less often than this, and if so much more
of its samples are near copies than of held-out windows."""
COPYING_DEFINITIONS = {
    "train_distance": "share of tokens that differ from the nearest training window, at the best "
    "shift of up to half of a window, where both overlap; without tokens that tell less than half "
    "of what a token tells on average, as those of bare ground; of at least half as many tokens as "
    "the held-out window in the middle has; median of the windows",
    "near_copies": "share of windows at most half as far from training as the median held-out one",
    "copying_z": "Mann-Whitney z of the distances of samples and of held-out windows (Meehan et "
    "al. 2020, in one cell); below 0 if samples are nearer",
    "psnr_nearest": f"of the mean squared error between the {CLOSEST} windows nearest to training "
    "and what they are nearest to, both from tokens, where they overlap",
    "flagged": f"if p < {CHANCE} in Fisher's exact test (one-sided), and near_copies_samples is "
    f"larger than near_copies_real by at least {EXCESS}",
}


@dataclass(frozen=True)
class Nearest:
    """The training window nearest to each of N windows."""

    distance: Float[np.ndarray, " N"]
    """Share of tokens that differ, 0 … 1."""
    row: Int[np.ndarray, " N"]
    """Of the train split."""
    shift: Int[np.ndarray, " N"]
    """Latent frame at which the training window begins; see `overlap`."""

    def closest(self) -> list[int]:
        """Returns the numbers of the windows that are nearest of all, at most `CLOSEST`.

        Of those that are nearest to the same training window, the first only.
        """
        order = self.distance.argsort(kind="stable")
        _, places = np.unique(self.row[order], return_index=True)
        numbers: list[int] = order[np.sort(places)][:CLOSEST].tolist()
        return numbers


def overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Returns which frames two windows have in common if the second begins at frame `shift`.

    Both are of `length` frames; a shift below 0 lies before the first one.
    """
    first, second = max(0, shift), max(0, -shift)
    return slice(first, length - second), slice(second, length - first)


def decoded_pair(
    window: Int[np.ndarray, "t h w"],
    other: Int[np.ndarray, "t h w"],
    shift: int,
    decode: Callable[[Tokens], Iterable[Clip]],
) -> tuple[Clip, Clip]:
    """Decodes a window and one that begins at latent frame `shift` of it; returns what they share.

    Both as pictures [T, H, W, 3] of the frames in which they overlap.
    """
    a, b = decode(np.stack([window, other]))
    ours, theirs = overlap(len(a), shift * (len(a) // len(window)))
    return a[ours], b[theirs]


@dataclass(frozen=True)
class Content:
    """What tells windows of a world from one another.

    Where most of a video is bare ground, two windows agree on it whatever happens in them, and an
    empty half of one is equal to an empty half of thousands.
    """

    tells: Bool[np.ndarray, " K"]
    """The tokens that tell at least half of what a token tells on average in training, in nats."""
    least: float
    """Half of such tokens of the held-out window in the middle: less is compared as so much."""

    @staticmethod
    def of(counts: Int[np.ndarray, " K"], held_out: Tokens) -> "Content":
        """Weighs tokens by how often each occurs in training, and measures held-out windows."""
        told = -np.log(np.maximum(counts, 1) / counts.sum())
        tells = told >= (told * counts).sum() / counts.sum() / 2
        return Content(tells, float(np.median(tells[held_out].sum((1, 2, 3)))) / 2)


def nearest_windows(
    store: TokenStore, tokens: Tokens, content: Content, *, device: str = "cpu"
) -> Nearest:
    """Finds the nearest training window of each window, at any shift by up to half of a window.

    Of windows that are as near, the first found stays. Holds one shard and the distances to a block
    of it at a time, however many training windows there are.
    """
    # As numbers of this type, all tokens differ from one another.
    exact = torch.float32 if store.codebook_size <= 1 << 24 else torch.float64
    windows = torch.from_numpy(np.where(content.tells[tokens], tokens, -1)).to(device, exact)
    length = store.grid[0]
    nearest = Nearest(
        np.full(len(tokens), math.inf), np.zeros(len(tokens), int), np.zeros(len(tokens), int)
    )
    for first, block in _train_blocks(store):
        told = np.where(content.tells[block], block.astype(np.int64), -2)  # Equal to no -1.
        others = torch.from_numpy(told).to(device, exact)
        for shift in sorted(range(-(length // 2), length // 2 + 1), key=abs):
            ours, theirs = overlap(length, shift)
            a, b = windows[:, ours].flatten(1), others[:, theirs].flatten(1)
            differing = torch.cdist(a, b, p=0).cpu().numpy()
            row, agreeing = differing.argmin(1), a.shape[1] - differing.min(1).astype(np.float64)
            compared = np.maximum((a >= 0).sum(1).cpu().numpy(), max(content.least, 1))
            distance = (compared - agreeing) / compared
            nearer = distance < nearest.distance
            nearest.distance[nearer] = distance[nearer]
            nearest.row[nearer] = first + row[nearer]
            nearest.shift[nearer] = shift
    return nearest


def _train_blocks(store: TokenStore) -> Iterator[tuple[int, Tokens]]:
    """Yields the train split in parts, each with its first row."""
    size = max(1, BLOCK_TOKENS // math.prod(store.grid))
    shards = range(store.num_shards("train"))
    for shard in tqdm(shards, desc="nearest windows", unit="shard", disable=None, leave=False):
        first, _ = store.shard_rows("train", shard)
        tokens = store.read_shard("train", shard)
        for start in range(0, len(tokens), size):
            yield first + start, tokens[start : start + size]


def measure_copying(
    evaluation: Evaluation,
    sets: ComparedSets,
    samples: TokenStore | None,
    *,
    decode: Callable[[Tokens], Iterable[Clip]] | None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures how near samples and held-out windows come to training; returns the protocol.

    `evaluation.copying` gets the verdict, all distances and the nearest pairs. Pixels are compared
    if there is a way to `decode` tokens.
    """
    if why := why_nothing_is_held_out(sets, samples):
        evaluation.skip(COPYING_KEYS, why)
        return {}
    assert sets.samples is not None
    store = sets.store
    tokens = {
        "samples": sets.samples[:MAX_WINDOWS],
        "real": np.concatenate([sets.reference[:MAX_WINDOWS], sets.real[:MAX_WINDOWS]]),
    }
    content = Content.of(sets.known, tokens["real"])
    nearest = {
        who: nearest_windows(store, windows, content, device=device)
        for who, windows in tokens.items()
    }
    medians = {who: np.median(near.distance) for who, near in nearest.items()}
    evaluation.add({f"train_distance_{who}": median for who, median in medians.items()})
    evaluation.copying = {
        **judge(evaluation, **nearest),
        "distances": {who: np.sort(near.distance).tolist() for who, near in nearest.items()},
        "pairs": _pairs(store, nearest["samples"]),
    }
    if decode is not None:
        for who, near in nearest.items():
            error = _squared_error(store, tokens[who], near, decode)
            evaluation.add({f"psnr_nearest_{who}": psnr(error)})
    return {
        "num_samples": len(tokens["samples"]),
        "num_held_out": len(tokens["real"]),
        "num_train": store.num_windows("train"),
        "how": COPYING_DEFINITIONS,
    }


def judge(evaluation: Evaluation, samples: Nearest, real: Nearest) -> dict[str, Any]:
    """Measures what tells copies from chance; the verdict is None if there are too few windows."""
    sizes = len(samples.distance), len(real.distance)
    if fisher_exact((sizes[0], 0), sizes) >= CHANCE:
        why = f"{sizes[0]} samples and {sizes[1]} held-out windows are too few"
        evaluation.skip(SHARES, why)
        return {"flagged": None}
    near = float(np.median(real.distance)) / 2
    is_copy = samples.distance <= near
    copies = int(is_copy.sum()), int((real.distance <= near).sum())
    chance = fisher_exact(copies, sizes)
    shares = copies[0] / sizes[0], copies[1] / sizes[1]
    z = mann_whitney(samples.distance, real.distance)
    evaluation.add(dict(zip(SHARES, (z, *shares), strict=True)))
    return {
        "flagged": chance < CHANCE and shares[0] - shares[1] >= EXCESS,
        "chance": chance,
        "near": near,
        "near_copies": {"samples": copies[0], "real": copies[1]},
        "windows_copied": len(np.unique(samples.row[is_copy])),
    }


def _pairs(store: TokenStore, nearest: Nearest) -> list[dict[str, Any]]:
    """Says which samples are nearest to training, and to which of its windows."""
    closest = nearest.closest()
    plan = store.plan("train").select(["row", "video", "first_frame"])
    return [
        {
            "sample": number,
            **place,
            "shift": int(nearest.shift[number]),
            "distance": float(nearest.distance[number]),
        }
        for number, place in zip(closest, plan.take(nearest.row[closest]).to_pylist(), strict=True)
    ]


def _squared_error(
    store: TokenStore,
    tokens: Tokens,
    nearest: Nearest,
    decode: Callable[[Tokens], Iterable[Clip]],
) -> float:
    """Returns the mean squared error of the closest windows and those that they are nearest to."""
    errors = []
    for number in nearest.closest():
        row = int(nearest.row[number])
        (other,) = store.read("train", row, row + 1)
        pair = decoded_pair(tokens[number], other, int(nearest.shift[number]), decode)
        errors.append(squared_error(*pair))
    return math.fsum(errors) / len(errors)


def verdict(evaluation: Mapping[str, Any]) -> str:
    """Says in a sentence whether samples are copies, by what is in a metrics.json, if anything."""
    copying = evaluation.get("copying") or {}
    if not copying:
        return ""
    if copying["flagged"] is None:
        return f"Whether it copies is not known: {evaluation['not_computed'][SHARES[0]]}."
    (copies, drawn), (usual, held_out) = (
        (copying["near_copies"][who], len(copying["distances"][who])) for who in ("samples", "real")
    )
    said = (
        f"{copies} of {drawn} new videos ({copies / drawn:.0%}) and {usual} of {held_out} held-out "
        f"real ones ({usual / held_out:.0%}) are near copies of training clips"
    )
    if copying["flagged"]:
        return f"It copies: {said}; different clips copied: {copying['windows_copied']}."
    return f"No sign of copying: {said}."
