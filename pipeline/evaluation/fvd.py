"""FVD and KVD: how far apart videos are for the I3D network, over runs and along the video."""

import hashlib
import io
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline.config import fingerprint
from pipeline.errors import TokenStoreError
from pipeline.evaluation.i3d import I3D, I3D_FRAMES, load_i3d
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import (
    SETS,
    Tokens,
    Videos,
    Windows,
    batches,
    choose_windows,
    real_halves,
)
from pipeline.metrics import frechet_distance, kernel_distance
from pipeline.pixels import published_bytes
from pipeline.storage.files import sha256_file, write_bytes
from pipeline.store.reader import TokenStore

FVD_FRAMES = 16
"""Frames of the windows along a longer one."""
KEYS = ("fvd", "kvd")
HOW = {
    "network": "InceptionI3d, 400 logits averaged over time; frames resized to 224 bilinearly "
    "without antialiasing, -1 ... 1",
    "fvd": "squared Fréchet distance of Gaussians, unbiased covariances, float64",
    "kvd": "squared MMD, polynomial kernel of degree 3, gamma 1/D, coef0 1, unbiased, float64",
    "runs": "mean over runs; _std is the standard deviation of one run (n - 1); each run draws "
    "real windows by a seed of its own and has samples of its own",
    "at": "_at_N is the FVD of frames N ... N + 15 of every window",
}
Features = Float[np.ndarray, "N S K"]
"""Of each video: the whole window first, then the windows along it."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a published number was measured on; split and stride are those of the data set."""

    frames: int
    num_videos: int
    runs: int
    seed: int = 0
    hop: int = FVD_FRAMES


PROTOCOLS = {
    "mebt-16f": Protocol(frames=16, num_videos=2048, runs=10),
    "mebt-128f": Protocol(frames=128, num_videos=512, runs=5),
}


@dataclass(frozen=True)
class Runs:
    """Several comparisons of equal size."""

    store: TokenStore
    samples: TokenStore | None
    split: str
    count: int
    """Windows of each set in each run."""
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[Windows]:
        """Draws real windows for each run; no two runs share a sample."""
        for run, seed in enumerate(self.seeds):
            yield choose_windows(
                self.store,
                self.samples,
                split=self.split,
                limit=self.count,
                seed=seed,
                first_sample=run * self.count,
            )


def plan_runs(
    store: TokenStore,
    samples: TokenStore | None,
    *,
    split: str,
    num_videos: int,
    runs: int,
    seed: int,
    protocol: str | None = None,
) -> Runs:
    """Finds out how many windows each run can have, at most `num_videos`.

    Raises TokenStoreError if a named protocol asks for more than there are: nothing is repeated.
    """
    seeds = tuple(range(seed, seed + runs))
    halves = [real_halves(store, split, limit=num_videos, seed=one) for one in seeds]
    real = min(len(half) for pair in halves for half in pair)
    drawn = None if samples is None else samples.num_windows(samples.splits[0])
    if protocol is not None:
        _check_protocol(protocol, store, samples, split, real)
    counts = (num_videos, real, num_videos if drawn is None else drawn // runs)
    return Runs(store, samples, split, min(counts), seeds)


def _check_protocol(
    name: str, store: TokenStore, samples: TokenStore | None, split: str, real: int
) -> None:
    wanted = PROTOCOLS[name]
    otherwise = "or set evaluate.protocol to null"
    if store.info.frames != wanted.frames:
        raise TokenStoreError(
            f"protocol {name} compares windows of {wanted.frames} frames, but those of "
            f"{store.root} have {store.info.frames}; set tokenize.frames, {otherwise}."
        )
    if real < wanted.num_videos:
        raise TokenStoreError(
            f"protocol {name} needs two sets of {wanted.num_videos} real windows that share no "
            f"pixel, but split {split!r} of {store.root} has sets of {real} only; lower "
            f"tokenize.hop, choose another evaluate.split, {otherwise}."
        )
    needed = wanted.num_videos * wanted.runs
    if samples is None:
        return
    if samples.grid[0] != store.grid[0]:
        raise TokenStoreError(
            f"protocol {name} compares samples of {store.grid[0]} latent frames, but those of "
            f"{samples.root} have {samples.grid[0]}; set sample.total_frames, {otherwise}."
        )
    drawn = samples.num_windows(samples.splits[0])
    if drawn < needed:
        raise TokenStoreError(
            f"protocol {name} needs {needed} samples ({wanted.num_videos} for each of "
            f"{wanted.runs} runs), but there are {drawn}; set sample.num_samples, {otherwise}."
        )


def window_starts(num_frames: int, hop: int) -> list[int]:
    """Returns the first frames of the 16-frame windows along a longer one, the last included."""
    last = num_frames - FVD_FRAMES
    return [*range(0, last, hop), last] if last > 0 else []


@dataclass(frozen=True, kw_only=True)
class Network:
    """Turns videos into features, and keeps those of real ones."""

    features: Callable[[Videos], Float[np.ndarray, "B K"]]
    identity: str
    """Hash of its weights."""
    truncate: bool
    """Whether pictures become bytes as published, without their fractions."""
    min_frames: int = 1
    """The shortest window that it can see."""
    cache: Path | None = None
    """Folder of features of real windows."""

    def see(self, videos: Videos, starts: list[int]) -> Features:
        """Returns the features of whole windows and of those along them."""
        clips = [videos, *(videos[:, start : start + FVD_FRAMES] for start in starts)]
        return np.stack([self.features(clip) for clip in clips], axis=1)

    def kept(self, key: object, make: Callable[[], Features]) -> Features:
        """Returns what `make` does, from the cache if it is there and undamaged."""
        if self.cache is None:
            return make()
        name = fingerprint({"key": key, "i3d": self.identity, "truncated": self.truncate})
        path = self.cache / f"{name}.features"
        found = _read_features(path, name)
        if found is None:
            found = make()
            buffer = io.BytesIO()
            np.save(buffer, found, allow_pickle=False)
            write_bytes(path, _digest(name, buffer.getvalue()) + buffer.getvalue())
        return found


def open_i3d(path: Path, *, cache: Path | None, truncate: bool, device: str) -> Network:
    """Opens published weights of I3D. Raises CheckpointError if the file holds anything else."""
    return Network(
        features=partial(_i3d_features, load_i3d(path, device)),
        identity=sha256_file(path),
        truncate=truncate,
        min_frames=I3D_FRAMES,
        cache=cache,
    )


def _i3d_features(model: I3D, videos: Videos) -> Float[np.ndarray, "B K"]:
    features: np.ndarray = model.features(torch.from_numpy(videos)).numpy()
    return features


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()


def _read_features(path: Path, name: str) -> Features | None:
    """Reads a file of the cache; one that is damaged or of another key is as good as none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, data = content[:32], content[32:]
    if digest != _digest(name, data):
        return None
    features: Features = np.load(io.BytesIO(data), allow_pickle=False)
    return features


def measure_fvd(
    found: Evaluation,
    runs: Runs,
    network: Network,
    *,
    read: Callable[[str, int], UInt8[np.ndarray, "T H W 3"]],
    decode: Callable[[Tokens], Videos],
    batch_size: int,
    hop: int,
) -> None:
    """Measures each set of videos against real ones; mean and spread over the runs.

    Holds one batch of pictures at a time. `read` and `decode` are those of `measure_pictures`, but
    `decode` rounds as the network is to see it.
    """
    frames = runs.store.info.frames
    assert frames, "tokens made from frames know their window"
    if frames < network.min_frames:
        why = f"I3D needs windows of at least {network.min_frames} frames, these have {frames}"
        found.skip(KEYS, why)
        return
    if runs.samples is None:
        found.skip([f"{key}_samples" for key in KEYS], "no --samples were given")
    if runs.count < 2:
        why = f"needs 2 windows on each side in every run, but there are {runs.count}"
        found.skip([f"{key}_{who}" for key in KEYS for who in SETS], why)
        return
    starts = window_starts(frames, hop)
    values: dict[str, list[float]] = {}
    for windows in runs:
        sets = _features_of(windows, network, starts, read, decode, batch_size)
        for key, value in _distances(sets, starts):
            values.setdefault(key, []).append(value)
    found.add({key: statistics.fmean(several) for key, several in values.items()})
    if len(runs.seeds) > 1:
        found.add({f"{key}_std": statistics.stdev(several) for key, several in values.items()})


def _features_of(
    windows: Windows,
    network: Network,
    starts: list[int],
    read: Callable[[str, int], UInt8[np.ndarray, "T H W 3"]],
    decode: Callable[[Tokens], Videos],
    batch_size: int,
) -> dict[str, Features]:
    plan = windows.store.plan(windows.split)

    def see(who: str, count: int, videos: Callable[[slice], Videos]) -> Features:
        parts = batches(count, batch_size, f"FVD, {who}")
        return np.concatenate([network.see(videos(part), starts) for part in parts])

    def real(places: list[dict[str, Any]], part: slice) -> Videos:
        videos = np.stack([read(place["video"], place["first_frame"]) for place in places[part]])
        return published_bytes(videos) if network.truncate else videos

    def made(tokens: Tokens, part: slice) -> Videos:
        return decode(tokens[part])

    sets = {}
    for who, rows in zip(("reference", "real"), windows.rows, strict=True):
        places = plan.take(rows).select(["video", "first_frame"]).to_pylist()
        key = {
            "version": 1,
            "tokens": windows.store.fingerprint,
            "source": windows.store.info.source,
            "split": windows.split,
            "windows": [[place["video"], place["first_frame"]] for place in places],
            "starts": starts,
        }
        make = partial(see, f"{who} videos", len(places), partial(real, places))
        sets[who] = network.kept(key, make)
    tokens = {"reconstructions": windows.real}
    if windows.samples is not None:
        tokens["samples"] = windows.samples
    for who, grids in tokens.items():
        sets[who] = see(who, len(grids), partial(made, grids))
    return sets


def _distances(sets: dict[str, Features], starts: list[int]) -> Iterator[tuple[str, float]]:
    reference = sets["reference"]
    for who in (who for who in SETS if who in sets):
        features = sets[who]
        yield f"fvd_{who}", frechet_distance(reference[:, 0], features[:, 0])
        yield f"kvd_{who}", kernel_distance(reference[:, 0], features[:, 0])
        for index, start in enumerate(starts, start=1):
            value = frechet_distance(reference[:, index], features[:, index])
            yield f"fvd_{who}_at_{start}", value


def fvd_protocol(runs: Runs, network: Network, *, name: str | None, hop: int) -> dict[str, Any]:
    """Says what FVD and KVD were made of."""
    info = runs.store.info
    return {
        "protocol": name,
        "split": runs.split,
        "frames": info.frames,
        "stride": info.stride,
        "size": info.size,
        "num_videos": runs.count,
        "runs": len(runs.seeds),
        "seeds": list(runs.seeds),
        "hop": hop,
        "rounding": "truncated to bytes, as published" if network.truncate else "to the nearest",
        "i3d_sha256": network.identity,
        "how": HOW,
    }
