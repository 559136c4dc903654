"""Real windows, their reconstructions and samples -> numbers, and why some could not be made."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from pipeline.errors import TokenStoreError
from pipeline.evaluation.distances import (
    DISTANCES,
    ReconstructionErrors,
    VideoSet,
    along,
    distances,
    scene,
    see,
    stretches_of,
    two_halves,
)
from pipeline.evaluation.numbers import HOW, Evaluation
from pipeline.metrics import (
    codebook_use,
    frequency_loss,
    token_counts,
    total_variation,
)
from pipeline.store.reader import TokenStore, read_rows

Tokens = Int[np.ndarray, "N t h w"]
Videos = UInt8[np.ndarray, "B T H W 3"]

SETS = ("real", "reconstructions", "samples")
"""What is held against real videos; ends of the names of numbers."""
RECONSTRUCTION = (
    *("psnr", "psnr_mean_frame", "psnr_moving", "psnr_moving_mean_frame"),
    *("flicker_real", "flicker_reconstructions", "ssim"),
)


@dataclass(frozen=True)
class Windows:
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

    def too_few(self, needed: int) -> str:
        """Says why a number cannot be made."""
        found = f"{len(self.reference)} and {len(self.real)} real ones that share no pixel"
        if self.samples is not None:
            found += f", {len(self.samples)} samples"
        return f"needs {needed} windows on each side, but there are {found}"

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
            "how": HOW,
        }


def real_halves(
    store: TokenStore, split: str, *, limit: int, seed: int
) -> tuple[list[int], list[int]]:
    """Chooses rows of a split for two sets that share no pixel: see `two_halves`."""
    plan, info = store.plan(split), store.info
    span = ((info.frames or 1) - 1) * (info.stride or 1) + 1
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
) -> Windows:
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
    drawn = None
    if samples is not None:
        drawn = samples.read(samples.splits[0], first_sample, first_sample + limit)
        drawn = one_window_each(drawn, store.grid[0], first_sample, window_places(store, samples))
    return Windows(
        store,
        split,
        rows,
        reference=read_rows(store, split, rows[0]),
        real=read_rows(store, split, rows[1]),
        samples=drawn,
        samples_from=None if samples is None else _how_cut(store, samples),
    )


def _check_comparable(store: TokenStore, samples: TokenStore) -> None:
    """Raises TokenStoreError unless windows of the samples can be held against those of a store."""
    grid = store.grid if samples.grid[1:] != store.grid[1:] else samples.grid  # Length: see below.
    for what, theirs, ours in (
        ("tokenizer", samples.info.tokenizer, store.info.tokenizer),
        ("codebook size", samples.codebook_size, store.codebook_size),
        ("grid", samples.grid, grid),
    ):
        if theirs != ours:
            raise TokenStoreError(
                f"{samples.root} has {what} {theirs}, but {store.root} has {ours}. Give the tokens "
                "that the samples' model was trained on."
            )
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


def measure_tokens(found: Evaluation, windows: Windows) -> None:
    """Measures how the codebook is used, and compares token histograms."""
    size, known = windows.store.codebook_size, windows.known
    use = codebook_use(known)
    found.add(
        {
            "codebook_use": use.share,
            "codebook_dead": use.dead,
            "codebook_perplexity": use.perplexity,
            "bits_per_token": use.bits,
            "token_loss_uniform": math.log(size),
            "token_loss_frequency": frequency_loss(known, token_counts(windows.held_out(), size)),
        }
    )
    if windows.samples is None:
        found.skip(["token_distance_samples"], "no --samples were given")
    if windows.count < 1:
        found.skip(["token_distance_real", "token_distance_samples"], windows.too_few(1))
        return
    reference = token_counts(windows.reference[: windows.count], size)
    for who, tokens in (("real", windows.real), ("samples", windows.samples)):
        if tokens is not None:
            counts = token_counts(tokens[: windows.count], size)
            found.add({f"token_distance_{who}": total_variation(reference, counts)})


def skip_pictures(found: Evaluation, why: str) -> None:
    """Names every number that `measure_pictures` would have made."""
    found.skip(RECONSTRUCTION, why)
    found.skip([f"{key}_{who}" for key in DISTANCES for who in SETS], why)


def measure_pictures(
    found: Evaluation,
    windows: Windows,
    *,
    read: Callable[[str, int], UInt8[np.ndarray, "T H W 3"]],
    decode: Callable[[Tokens], Videos],
    features: Callable[[Videos], Float[np.ndarray, "B D t h w"]],
    perceptual: Callable[[Videos, Videos], Float[np.ndarray, " B"]] | None = None,
    batch_size: int,
) -> None:
    """Measures reconstructions against their videos, and each set of videos against real ones.

    `read` returns the window of a video that starts at a frame; `perceptual` the mean LPIPS of the
    frames of each video. Holds one batch of pictures at a time, whatever the number of windows.
    """
    plan = windows.store.plan(windows.split)
    seen: dict[str, list[VideoSet]] = {}
    errors = ReconstructionErrors()

    def look_at(who: str, videos: Videos) -> None:
        seen.setdefault(who, []).append(see(features(videos), videos))

    real = {"reference": windows.reference, "real": windows.real}
    for rows, (who, tokens) in zip(windows.rows, real.items(), strict=True):
        for part in batches(len(rows), batch_size, f"{who} videos"):
            places = plan.take(rows[part]).to_pylist()
            videos = np.stack([read(place["video"], place["first_frame"]) for place in places])
            decoded = decode(tokens[part])
            for video, reconstruction in zip(videos, decoded, strict=True):
                errors.add(video, reconstruction)
            if perceptual is not None:
                errors.perceptual += perceptual(videos, decoded).tolist()
            look_at(who, videos)
            if who == "real":
                look_at("reconstructions", decoded)
    if windows.samples is None:
        found.skip([f"{key}_samples" for key in DISTANCES], "no --samples were given")
    else:
        for part in batches(windows.count, batch_size, "samples"):
            look_at("samples", decode(windows.samples[part]))
    found.add(errors.summary())
    if not errors.flicker:
        found.skip(["flicker_real", "flicker_reconstructions"], "windows have a single frame")
    if not errors.similarity:
        found.skip(["ssim"], "the frames are smaller than its window")
    if windows.count < 2:
        found.skip([f"{key}_{who}" for key in DISTANCES for who in SETS], windows.too_few(2))
        return
    sets = {who: VideoSet.joined(rows).first(windows.count) for who, rows in seen.items()}
    reference = sets.pop("reference")
    for who, others in sets.items():
        measured = distances(reference, others)
        found.add({f"{key}_{who}": value for key, value in measured.items()})
        parts = stretches_of(windows.store.grid[0])
        starts = [_first_frame(windows.store, part.start) for part in parts]
        course = zip(starts, along(reference, others), strict=True)
        found.add({f"frechet_{who}_at_{start}": value for start, value in course})


def _first_frame(store: TokenStore, latent: int) -> int:
    """Returns the first frame of a window's latent frame, of which a causal first one has one."""
    alone = int(store.info.causal)
    each = ((store.info.frames or 0) - alone) // max(1, store.grid[0] - alone)
    return max(0, alone + (latent - alone) * each)


def batches(count: int, size: int, what: str) -> Iterator[slice]:
    """Cuts `count` into slices of at most `size`, with a progress bar on a terminal."""
    for start in tqdm(range(0, count, size), desc=what, unit="batch", disable=None, leave=False):
        yield slice(start, min(start + size, count))
