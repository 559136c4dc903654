"""Chooses which windows are compared: two sets of real ones that share no pixel, and samples."""

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from pipeline.errors import TokenStoreError
from pipeline.evaluation.numbers import METRIC_DEFINITIONS
from pipeline.store.reader import TokenStore, read_rows
from pipeline.store.same_tokens import TokensOf, check_same_tokens
from pipeline.store.window import Window

Tokens = Int[np.ndarray, "N t h w"]
Clip = UInt8[np.ndarray, "T H W 3"]
Videos = UInt8[np.ndarray, "B T H W 3"]

COMPARED = ("real", "reconstructions", "samples")
"""Sets of windows that are held against the reference; ends of the names of numbers."""


@dataclass(frozen=True)
class ComparedSets:
    """Real windows as the reference, and what is held against them."""

    store: TokenStore
    split: str
    rows: tuple[list[int], list[int]]
    """Where in the store the reference and the other real windows are."""
    reference: Tokens
    real: Tokens
    samples: Tokens | None
    samples_from: str | None
    """What the samples are windows of."""

    @property
    def count(self) -> int:
        """Windows that every set has."""
        sets = (self.reference, self.real, self.samples)
        return min(len(tokens) for tokens in sets if tokens is not None)

    @cached_property
    def known(self) -> Int[np.ndarray, " K"]:
        """How often each token occurs in training, or without a train split in this one."""
        split = "train" if "train" in self.store.splits else self.split
        return self.store.token_counts(split)

    def held_out(self) -> Tokens:
        """Returns the tokens of all real windows."""
        return np.concatenate([self.reference, self.real])

    def places(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns of which video windows of the split are, and at which frame they begin."""
        plan = self.store.plan(self.split).select(["video", "first_frame"])
        places: list[dict[str, Any]] = plan.take(np.asarray(rows, dtype=np.int64)).to_pylist()
        return places

    def too_few(self, needed: int) -> str:
        """Says why a number cannot be made."""
        counts = f"{len(self.reference)} and {len(self.real)} real ones that share no pixel"
        if self.samples is not None:
            counts += f", {len(self.samples)} samples"
        return f"needs {needed} windows on each side, but there are {counts}"

    def _how_apart(self, videos: Collection[str]) -> str:
        if not self.rows[1]:
            return "one only: any two windows overlap"
        if len(set(map(scene, videos))) > 1:
            return "two, of different videos or times; tiles of one scene and time stay together"
        return "two, of different times of the one scene"

    def protocol(self) -> dict[str, Any]:
        """Says what was compared, and how."""
        info = self.store.info
        plan = self.store.plan(self.split)["video"]
        videos = {plan[row].as_py() for half in self.rows for row in half}
        return {
            "split": self.split,
            "num_videos": self.count,
            "num_real_windows": len(self.reference) + len(self.real),
            "num_source_videos": len(videos),
            "real_sets": self._how_apart(videos),
            "window": {
                "frames": info.frames,
                "stride": info.stride,
                "size": info.size,
                "grid": list(self.store.grid),
            },
            "samples": self.samples_from,
            "how": METRIC_DEFINITIONS,
        }


def batches(count: int, size: int, what: str) -> Iterator[slice]:
    """Cuts `count` into slices of at most `size`, with a progress bar on a terminal."""
    for start in tqdm(range(0, count, size), desc=what, unit="batch", disable=None, leave=False):
        yield slice(start, min(start + size, count))


def real_halves(
    store: TokenStore, split: str, *, limit: int, seed: int
) -> tuple[list[int], list[int]]:
    """Chooses rows of a split for two sets that share no pixel: see `two_halves`."""
    plan, span = store.plan(split), Window.of(store.info).span
    videos, starts = (plan[column].to_pylist() for column in ("video", "first_frame"))
    return two_halves(videos, starts, span=span, limit=limit, seed=seed)


def choose_windows(
    store: TokenStore,
    samples: TokenStore | None,
    *,
    split: str,
    limit: int,
    seed: int,
    first_sample: int = 0,
) -> ComparedSets:
    """Draws two sets of real windows that share no pixel, and takes samples from the first on.

    Raises TokenStoreError if there is no such split, or if the samples are not of these tokens.
    """
    if split not in store.splits:
        raise TokenStoreError(
            f"{store.root} has no split {split!r}, only {', '.join(store.splits)}; set "
            "evaluate.split to one that it has."
        )
    if samples is not None:
        _check_comparable(store, samples)
    rows = real_halves(store, split, limit=limit, seed=seed)
    cut = None
    if samples is not None:
        whole = samples.read(samples.splits[0], first_sample, first_sample + limit)
        cut = one_window_each(whole, store.grid[0], first_sample, window_places(store, samples))
    return ComparedSets(
        store,
        split,
        rows,
        reference=read_rows(store, split, rows[0]),
        real=read_rows(store, split, rows[1]),
        samples=cut,
        samples_from=None if samples is None else _how_cut(store, samples),
    )


def why_nothing_is_held_out(sets: ComparedSets, samples: TokenStore | None) -> str | None:
    """Says why samples and held-out windows cannot both be held against training, if so."""
    if samples is None:
        return "no --samples were given"
    if "train" not in sets.store.splits:
        return "there is no train split"
    if sets.split == "train":
        return "evaluate.split is train, so no window is held out"
    if (samples.info.extra.get("given") or {}).get("split") == "train":
        return "the samples began from training windows"
    return None


def _check_comparable(store: TokenStore, samples: TokenStore) -> None:
    """Raises TokenStoreError unless windows of the samples can be held against those of a store."""
    theirs, ours = TokensOf.store(samples), TokensOf.store(store)
    if samples.grid[1:] == store.grid[1:]:  # Longer ones are cut, shorter ones named below.
        ours = replace(ours, grid=samples.grid)
    advice = "Give the tokens that the samples' model was trained on."
    check_same_tokens(theirs, ours, advice)
    if samples.grid[0] < store.grid[0]:
        raise TokenStoreError(
            f"{samples.root} has samples of {_length(samples)}, shorter than the windows of "
            f"{store.root} with {_length(store)}; draw longer ones (sample.total_frames), or make "
            "shorter windows of the real videos with `mebt tokenize` (tokenize.frames)."
        )


def window_places(store: TokenStore, samples: TokenStore) -> int:
    """Counts the latent frames of a sample at which a window may begin.

    A window that a causal tokenizer decodes begins with a frame by itself, as the sample does.
    """
    return 1 if store.info.causal else samples.grid[0] - store.grid[0] + 1


def _how_cut(store: TokenStore, samples: TokenStore) -> str:
    if samples.grid[0] == store.grid[0]:
        return "whole"
    if store.info.causal:
        return f"the first window of each, of {_length(samples)}: the tokenizer is causal"
    return (
        f"one window of each, of {_length(samples)}: that of sample i begins at its latent frame "
        f"i mod {window_places(store, samples)}, so that all places count alike"
    )


def _length(store: TokenStore) -> str:
    latent = f"{store.grid[0]} latent frame{'s' * (store.grid[0] > 1)}"
    return f"{store.info.frames} frames ({latent})" if store.info.frames else latent


def one_window_each(samples: Tokens, length: int, first: int, places: int) -> Tokens:
    """Cuts one window out of each sample, at all `places` in turn by the sample's number."""
    starts = [(first + number) % places for number in range(len(samples))]
    rows = zip(samples, starts, strict=True)
    return np.stack([row[start : start + length] for row, start in rows]) if starts else samples


def scene(video: str) -> str:
    """Returns the name that all tiles of a scene have in common, as `mebt extract` cuts them.

    Tiles may overlap; clips of other times (`-f00024`) share no frame, so they are other scenes.
    """
    return re.sub(r"-x\d+-y\d+((-f\d+)?(#\d+)?)$", r"\1", video)


def two_halves(
    videos: Sequence[str], starts: Sequence[int], *, span: int, limit: int, seed: int
) -> tuple[list[int], list[int]]:
    """Chooses windows for two sets that share no pixel.

    `videos` names the video of each window, `starts` its first frame there, and each spans `span`
    frames. A scene goes to one set as a whole; if there is only one, the sets are of different
    times, and the second one is empty where that cannot be.

    Each set holds up to `limit` windows: first one of every video of its half, then a second one,
    and so on, so that any beginning of it is as varied as can be.
    """
    draw = random.Random(seed)
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(videos):
        rows.setdefault(video, []).append(row)
    names = sorted(rows)
    draw.shuffle(names)
    for name in names:
        draw.shuffle(rows[name])
    scenes = {name: scene(name) for name in names}
    order = list(dict.fromkeys(scenes.values()))
    sets: list[int | None]
    if len(order) > 1:
        sides = {key: index % 2 for index, key in enumerate(order)}
        sets = [sides[scenes[video]] for video in videos]
    else:
        sets = _cut_in_time(starts, span)
    turns: tuple[list[tuple[int, int, int]], ...] = ([], [])
    for number, name in enumerate(names):
        for half in (0, 1):
            mine = (row for row in rows[name] if sets[row] == half)
            turns[half].extend((turn, number, row) for turn, row in enumerate(mine))
    first, second = ([row for *_, row in sorted(half)[:limit]] for half in turns)
    return first, second


def _cut_in_time(starts: Sequence[int], span: int) -> list[int | None]:
    """Says for each window whether it ends before the best cut (0) or begins after it (1).

    None is for one that lies across it. All are 0 if they overlap wherever one cuts.
    """
    ordered, cuts = np.sort(starts), np.unique(starts)
    before = np.searchsorted(ordered, cuts - span, side="right")
    after = len(ordered) - np.searchsorted(ordered, cuts)
    fewer = np.minimum(before, after)
    if not fewer.any():
        return [0] * len(starts)
    cut = int(cuts[fewer.argmax()])
    return [0 if start + span <= cut else 1 if start >= cut else None for start in starts]
