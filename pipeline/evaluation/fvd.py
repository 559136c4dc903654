"""FVD and KVD: distances of videos' I3D features, over several repeats and along the video."""

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
from jaxtyping import Float

from pipeline.config import fingerprint
from pipeline.errors import TokenStoreError
from pipeline.evaluation.config import FVD_FRAMES, PROTOCOLS, EvaluateConfig
from pipeline.evaluation.i3d import HOW_TO_GET, I3D, I3D_FRAMES, load_i3d
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.sets import (
    COMPARED,
    ComparedSets,
    Tokens,
    Videos,
    batches,
    choose_windows,
    real_halves,
)
from pipeline.metrics import frechet_distance, kernel_distance
from pipeline.pixels import published_bytes
from pipeline.storage.files import sha256_file, write_bytes
from pipeline.store.reader import TokenStore

FVD_KEYS = ("fvd", "kvd")
FVD_DEFINITIONS = {
    "network": "InceptionI3d, 400 logits averaged over time; frames resized to 224x224 "
    "bilinearly without antialiasing, stretched if they are not square, -1 ... 1",
    "fvd": "squared Fréchet distance of Gaussians, unbiased covariances, float64",
    "kvd": "squared MMD, polynomial kernel of degree 3, gamma 1/D, coef0 1, unbiased, float64",
    "runs": "mean over runs; _std is the standard deviation of one run (n - 1); each run draws "
    "real windows by a seed of its own and has samples of its own",
    "at": "_at_N is the FVD of frames N ... N + 15 of every window",
}
Features = Float[np.ndarray, "N S K"]
"""Of each video: the whole window first, then the windows along it."""


@dataclass(frozen=True)
class Repeats:
    """Comparisons of equal size, each with real windows and samples of its own."""

    store: TokenStore
    samples: TokenStore | None
    split: str
    count: int
    """Windows of each set in each repeat."""
    seeds: tuple[int, ...]

    def __iter__(self) -> Iterator[ComparedSets]:
        """Draws real windows for each repeat; no two share a sample."""
        for number, seed in enumerate(self.seeds):
            yield choose_windows(
                self.store,
                self.samples,
                split=self.split,
                limit=self.count,
                seed=seed,
                first_sample=number * self.count,
            )


def plan_repeats(store: TokenStore, samples: TokenStore | None, config: EvaluateConfig) -> Repeats:
    """Finds out how many windows each repeat can have, at most `num_videos`.

    Raises TokenStoreError if a named protocol asks for more than there are: nothing is repeated.
    """
    split, limit = config.split, config.num_videos
    seeds = tuple(range(config.seed, config.seed + config.runs))
    halves = [real_halves(store, split, limit=limit, seed=seed) for seed in seeds]
    real = min(len(half) for pair in halves for half in pair)
    drawn = None if samples is None else samples.num_windows(samples.splits[0])
    if config.protocol is not None:
        _check_protocol(config.protocol, store, samples, split, real)
    count = min(limit, real, limit if drawn is None else drawn // config.runs)
    return Repeats(store, samples, split, count, seeds)


def _check_protocol(
    name: str, store: TokenStore, samples: TokenStore | None, split: str, real: int
) -> None:
    asked = PROTOCOLS[name]
    otherwise = "or set evaluate.protocol to null"
    if store.info.frames != asked.frames:
        raise TokenStoreError(
            f"protocol {name} compares windows of {asked.frames} frames, but those of "
            f"{store.root} have {store.info.frames}; set tokenize.frames, {otherwise}."
        )
    if real < asked.num_videos:
        raise TokenStoreError(
            f"protocol {name} needs two sets of {asked.num_videos} real windows that share no "
            f"pixel, but split {split!r} of {store.root} has sets of {real} only; lower "
            f"tokenize.hop, choose another evaluate.split, {otherwise}."
        )
    needed = asked.num_videos * asked.runs
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
            f"protocol {name} needs {needed} samples ({asked.num_videos} for each of "
            f"{asked.runs} runs), but there are {drawn}; set sample.num_samples, {otherwise}."
        )


def window_starts(num_frames: int, hop: int) -> list[int]:
    """Returns the first frames of the 16-frame windows along a longer one, the last included."""
    last = num_frames - FVD_FRAMES
    return [*range(0, last, hop), last] if last > 0 else []


@dataclass(frozen=True, kw_only=True)
class Network:
    """Turns videos into features, and caches those of real ones."""

    logits: Callable[[Videos], Float[np.ndarray, "B K"]]
    identity: str
    """Hash of its weights."""
    truncate: bool
    """Whether pictures become bytes as published, without their fractions."""
    min_frames: int = 1
    """The shortest window that it can see."""
    cache: Path | None = None
    """Folder of features of real windows."""

    def features(self, videos: Videos, starts: list[int]) -> Features:
        """Returns the features of whole windows and of those along them."""
        clips = [videos, *(videos[:, start : start + FVD_FRAMES] for start in starts)]
        return np.stack([self.logits(clip) for clip in clips], axis=1)

    def cached(self, key: object, make: Callable[[], Features]) -> Features:
        """Returns what `make` does, from the cache if it is there and undamaged."""
        if self.cache is None:
            return make()
        name = fingerprint({"key": key, "i3d": self.identity, "truncated": self.truncate})
        path = self.cache / f"{name}.features"
        features = _read_features(path, name)
        if features is None:
            features = make()
            buffer = io.BytesIO()
            np.save(buffer, features, allow_pickle=False)
            write_bytes(path, _digest(name, buffer.getvalue()) + buffer.getvalue())
        return features


def open_i3d(
    path: Path | None, *, cache: Path | None, truncate: bool, device: str
) -> Network | Missing:
    """Opens published weights of I3D. Raises CheckpointError if the file holds anything else."""
    if path is None:
        return Missing(f"needs the I3D network, and no --i3d was given: {HOW_TO_GET}")
    return Network(
        logits=partial(_i3d_logits, load_i3d(path, device)),
        identity=sha256_file(path),
        truncate=truncate,
        min_frames=I3D_FRAMES,
        cache=cache,
    )


def _i3d_logits(model: I3D, videos: Videos) -> Float[np.ndarray, "B K"]:
    logits: np.ndarray = model.features(torch.from_numpy(videos)).numpy()
    return logits


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()


def _read_features(path: Path, name: str) -> Features | None:
    """Reads a file of the cache; one that is damaged or of another key is ignored."""
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
    evaluation: Evaluation,
    repeats: Repeats,
    network: Network | Missing,
    pictures: Pictures | Missing,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Measures each set of videos against real ones; returns the protocol.

    Numbers are means over the repeats, with their spread. Holds one batch of pictures at a time.
    """
    if isinstance(network, Missing):
        evaluation.skip(FVD_KEYS, network.why)
        return {}
    if isinstance(pictures, Missing):
        evaluation.skip(FVD_KEYS, pictures.why)
        return {}
    protocol = _protocol(repeats, network, config)
    frames = repeats.store.info.frames
    assert frames, "tokens made from frames know their window"
    if frames < network.min_frames:
        why = f"I3D needs windows of at least {network.min_frames} frames, these have {frames}"
        evaluation.skip(FVD_KEYS, why)
        return protocol
    if repeats.samples is None:
        evaluation.skip([f"{key}_samples" for key in FVD_KEYS], "no --samples were given")
    if repeats.count < 2:
        why = f"needs 2 windows on each side in every run, but there are {repeats.count}"
        evaluation.skip([f"{key}_{who}" for key in FVD_KEYS for who in COMPARED], why)
        return protocol
    starts = window_starts(frames, config.fvd_hop)
    values: dict[str, list[float]] = {}
    for sets in repeats:
        features = _features_of(sets, network, pictures, starts, config.batch_size)
        for key, value in _distances(features, starts):
            values.setdefault(key, []).append(value)
    evaluation.add({key: statistics.fmean(several) for key, several in values.items()})
    if len(repeats.seeds) > 1:
        evaluation.add({f"{key}_std": statistics.stdev(several) for key, several in values.items()})
    return protocol


def _features_of(
    sets: ComparedSets,
    network: Network,
    pictures: Pictures,
    starts: list[int],
    batch_size: int,
) -> dict[str, Features]:
    """Returns the features of the reference and of what is compared with it."""

    def features_of(who: str, count: int, videos: Callable[[slice], Videos]) -> Features:
        parts = batches(count, batch_size, f"FVD, {who}")
        return np.concatenate([network.features(videos(part), starts) for part in parts])

    def real(places: list[dict[str, Any]], part: slice) -> Videos:
        videos = pictures.real(sets.split, places[part])
        return published_bytes(videos) if network.truncate else videos

    def decoded(tokens: Tokens, part: slice) -> Videos:
        return pictures.decode(tokens[part], truncate=network.truncate)

    features = {}
    for who, rows in zip(("reference", "real"), sets.rows, strict=True):
        places = sets.places(rows)
        key = {
            "version": 1,
            "tokens": sets.store.fingerprint,
            "source": sets.store.info.source,
            "split": sets.split,
            "windows": [[place["video"], place["first_frame"]] for place in places],
            "starts": starts,
        }
        make = partial(features_of, f"{who} videos", len(places), partial(real, places))
        features[who] = network.cached(key, make)
    tokens = {"reconstructions": sets.real}
    if sets.samples is not None:
        tokens["samples"] = sets.samples
    for who, grids in tokens.items():
        features[who] = features_of(who, len(grids), partial(decoded, grids))
    return features


def _distances(features: dict[str, Features], starts: list[int]) -> Iterator[tuple[str, float]]:
    reference = features["reference"]
    for who in (who for who in COMPARED if who in features):
        others = features[who]
        yield f"fvd_{who}", frechet_distance(reference[:, 0], others[:, 0])
        yield f"kvd_{who}", kernel_distance(reference[:, 0], others[:, 0])
        for index, start in enumerate(starts, start=1):
            value = frechet_distance(reference[:, index], others[:, index])
            yield f"fvd_{who}_at_{start}", value


def _protocol(repeats: Repeats, network: Network, config: EvaluateConfig) -> dict[str, Any]:
    """Says what FVD and KVD were made of."""
    info = repeats.store.info
    return {
        "protocol": config.protocol,
        "split": repeats.split,
        "frames": info.frames,
        "stride": info.stride,
        "size": info.size,
        "num_videos": repeats.count,
        "runs": len(repeats.seeds),
        "seeds": list(repeats.seeds),
        "hop": config.fvd_hop,
        "rounding": "truncated to bytes, as published" if network.truncate else "to the nearest",
        "i3d_sha256": network.identity,
        "how": FVD_DEFINITIONS,
    }
