"""Fits the values of a first params.yaml to footage and machine, each with its reason."""

import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.errors import FrameError
from pipeline.params.survey import Seen

Values = dict[str, dict[str, Any]]

DOWNSAMPLE = (4, 8, 8)
"""Frames and pixels of one token, in time and along the sides."""
UNTOLD_GB = 8.0
"""Memory that a machine is taken to have where Python cannot ask for it: on Windows."""
ALIKE = 1.05
"""Rates that differ by no more show motion alike."""
WINDOWS = (16, 8, 4)
"""Frames of a window, if the videos are long enough: whole tokens."""
USUAL_RATE = 30
"""Frames a second up to which every frame of a video goes into a window."""
MAX_DENSE = {"cpu": 512, "gpu": 2048}
"""Tokens of a window beyond which layers have latent tokens: the cost of `dense` ones, of which
each token reads every other, grows with the square."""
LATENT_LAYERS = ["encode", "process"] * 3 + ["encode", "decode"] + ["refresh", "decode"] * 2
LATENT_WIDTH, NUM_LATENTS = {"cpu": 128, "gpu": 512}, {"cpu": 128, "gpu": 256}
"""Of such layers; on a CPU those of the demo."""
MAX_WINDOWS = {"cpu": 10_000, "gpu": 200_000}
"""Windows beyond which fewer starts are kept: what is tokenized in minutes."""
FEW, MANY = 250, 5000
"""Windows without an overlap below which a small codebook does, and from which a large one."""

SMALL: Values = {
    "extract": {"size": 64},
    "tokenizer": {
        "codebook_size": 256,
        "embedding_dim": 8,
        "width": 16,
        "downsample": list(DOWNSAMPLE),
        "norm": "batch",
        "decoder_norm": "layer",
    },
    "fit_tokenizer": {
        "max_steps": 2000,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "cosine": True,
        "clip_norm": 1.0,
        "validate_every": 500,
        "checkpoint_every": 100,
        "log_every": 50,
        "motion_weight": 1.0,
        "change_weight": 1.0,
        "restart_threshold": 0.05,
        "half": True,
    },
    "tokenize": {"frames": 16, "hop": 4, "size": 64, "batch_size": 8, "shard_windows": 256},
    "model": {"layers": ["dense"] * 4, "width": 192, "num_latents": 0},
    "train": {
        "max_steps": 3000,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "cosine": True,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
        "validate_every": 500,
        "checkpoint_every": 100,
        "memory_gb": 1.0,
    },
    "sample": {},
    "decode": {},
    "evaluate": {},
}
"""What differs from the dataclasses' defaults, which are mostly of the published size: two cores
train this in about an hour, of which the tokenizer takes half."""

LARGE: Values = {
    "extract": {"size": 128},
    "tokenizer": {"width": 32, "embedding_dim": 64},
    "fit_tokenizer": {
        "max_steps": 20_000,
        "batch_size": 8,
        "learning_rate": 3e-4,
        "warmup_steps": 500,
        "validate_every": 2000,
        "checkpoint_every": 1000,
        "half": False,
    },
    "tokenize": {"size": 128, "batch_size": 16, "shard_windows": 4096},
    "model": {"layers": ["dense"] * 8, "width": 512},
    "train": {
        "max_steps": 30_000,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "warmup_steps": 1000,
        "ema_decay": 0.999,
        "validate_every": 2000,
        "checkpoint_every": 1000,
        "preview_every": 5000,
        "memory_gb": 4.0,
    },
}
"""What a GPU changes: some hours of one."""


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    cores: int
    memory_gb: float
    gpu_gb: float | None = None
    """Memory of the first GPU; None: there is none."""

    def __str__(self) -> str:
        gpu = f"a GPU of {self.gpu_gb:.0f} GB" if self.gpu_gb else "no GPU"
        return f"{self.cores} cores, {self.memory_gb:.0f} GB of memory, {gpu}"


def this_machine() -> Machine:
    """Looks at the machine that runs this."""
    memory = UNTOLD_GB
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Machine(os.cpu_count() or 1, memory, gpu)


@dataclass
class Choice:
    """Values for every section, and why some are what they are."""

    values: Values
    reasons: dict[str, str] = field(default_factory=dict)
    """`section.key` -> why."""

    def set(self, reason: str, **values: Any) -> None:
        """Sets values named `section__key`."""
        for name, value in values.items():
            section, _, key = name.partition("__")
            self.values[section][key] = value
            self.reasons[f"{section}.{key}"] = reason


def without_footage() -> Choice:
    """Returns values that suit any footage, and a machine without a GPU."""
    return Choice({name: dict(section) for name, section in SMALL.items()})


def fitted(footage: Sequence[Seen], machine: Machine, frames: int | None = None) -> Choice:
    """Returns values for these videos on this machine, with windows of so many frames.

    Without a number they are as long as usual. Raises FrameError if the videos are too short.
    """
    choice = _for_machine(machine)
    rate = _fit_rate(choice, footage)
    lengths = [round(video.seconds * min(rate or video.rate, video.rate)) for video in footage]
    _fit_size(choice, footage, machine)
    _fit_window(choice, footage, lengths, rate, (frames,) if frames else WINDOWS)
    _fit_layers(choice, machine)
    _fit_hop(choice, lengths, machine)
    _fit_batches(choice, machine)
    _fit_codebook(choice, sum(lengths))
    return choice


def fitted_to_frames(
    footage: Sequence[Seen], splits: Mapping[str, Sequence[int]], machine: Machine
) -> Choice:
    """Returns values for videos that are frames already, in splits of such lengths.

    Raises FrameError if none of a split is long enough for the shortest window.
    """
    choice = _for_machine(machine)
    lengths = [length for split in splits.values() for length in split]
    size = _largest_size(choice, footage)
    choice.set(_size_reason(choice, footage, machine), tokenize__size=size)
    halves = [int(quantile(split, split, share=0.5)) for split in splits.values()]
    frames = next((frames for frames in WINDOWS if frames <= min(halves)), None)
    if frames is None:
        raise FrameError(
            f"half of the frames of a split are in videos of {min(halves)} frames or fewer, too "
            f"few for a window of {WINDOWS[-1]}; give longer videos."
        )
    choice.set(
        f"half of the footage of each split is in videos of {min(halves):,} frames or more.",
        tokenize__frames=frames,
    )
    _fit_hop(choice, lengths, machine)
    _fit_batches(choice, machine)
    _fit_codebook(choice, sum(lengths))
    return choice


def fitted_to_machine(machine: Machine) -> Choice:
    """Returns values for tokens that are there already: what the machine alone decides."""
    choice = _for_machine(machine)
    _fit_batches(choice, machine)
    choice.reasons = {k: why for k, why in choice.reasons.items() if k.startswith("train.")}
    return choice


def _for_machine(machine: Machine) -> Choice:
    choice = without_footage()
    if machine.gpu_gb:
        for name, section in LARGE.items():
            choice.values[name] |= section
    return choice


def _fit_rate(choice: Choice, footage: Sequence[Seen]) -> float | None:
    """One rate, so that things move at one speed; None keeps each video's own."""
    rates = [video.rate for video in footage]
    slow, fast = min(rates), max(rates)
    if fast <= slow * ALIKE:
        choice.set(f"your videos have {slow:.4g} frames a second: all are kept.", extract__fps=None)
        return None
    rate = round(quantile(rates, [video.seconds for video in footage], share=0.25), 3)
    choice.set(
        f"your videos have {slow:.4g} to {fast:.4g} frames a second; things are to move at one "
        "speed, and three quarters of the footage have this rate or a higher one.",
        extract__fps=rate,
    )
    return rate


def quantile(values: Sequence[float], weights: Sequence[float], *, share: float) -> float:
    """Returns the least value for which those up to it have this share of the weight."""
    pairs = sorted(zip(values, weights, strict=True))
    sums = itertools.accumulate(weight for _, weight in pairs)
    least = share * sum(weights)
    return next(value for (value, _), total in zip(pairs, sums, strict=True) if total >= least)


def _fit_size(choice: Choice, footage: Sequence[Seen], machine: Machine) -> None:
    reason, size = _size_reason(choice, footage, machine), _largest_size(choice, footage)
    choice.set(reason, extract__size=size, tokenize__size=size)


def _shortest_side(footage: Sequence[Seen]) -> int:
    return min(min(video.width, video.height) for video in footage)


def _largest_size(choice: Choice, footage: Sequence[Seen]) -> int:
    """The largest side of whole tokens that all videos have, and that the machine bears."""
    largest, step = choice.values["extract"]["size"], DOWNSAMPLE[1]
    return int(max(step, min(largest, _shortest_side(footage) // step * step)))


def _size_reason(choice: Choice, footage: Sequence[Seen], machine: Machine) -> str:
    on, largest = "a GPU" if machine.gpu_gb else "a CPU", choice.values["extract"]["size"]
    short = _shortest_side(footage)
    return f"the shortest side of your videos is {short}; {largest} is what {on} trains well."


def _fit_window(
    choice: Choice,
    footage: Sequence[Seen],
    lengths: Sequence[int],
    rate: float | None,
    windows: Sequence[int],
) -> None:
    """The longest of such windows that long videos hold twice: to train on, and to test with.

    Half of the footage is in videos as long or longer; what is shorter than a window is left out.
    """
    usable = [length for length in lengths if length >= 2 * windows[-1]]
    if not usable:
        longest = max(footage, key=lambda video: video.frames)
        raise FrameError(
            f"the longest of {len(footage)} videos, {longest.path}, has {longest.frames} frames, "
            f"too few for a window to train on and one to test with, of {windows[-1]} frames each; "
            "give longer videos."
        )
    median = int(quantile(usable, usable, share=0.5))
    usual = rate or statistics.median(video.rate for video in footage)
    strides = sorted({max(1, round(usual / USUAL_RATE)), 1}, reverse=True)
    options = [(f, s, (f - 1) * s + 1) for f in windows for s in strides]
    frames, stride, span = next(option for option in options if 2 * option[2] <= median)
    held = "footage" if len(usable) == len(lengths) else "footage that is long enough"
    choice.set(
        f"half of your {held} is in videos of {median:,} frames or more: a window to train on and "
        "one to test with fit.",
        tokenize__frames=frames,
    )
    if stride > 1:
        choice.set(f"at {usual:.4g} frames a second neighbours are alike.", tokenize__stride=stride)
    share = max(10, math.ceil(100 * (span + 0.5) / median)) / 100
    choice.set(
        f"a tenth, or what holds a window of {span} frames in such a video.",
        extract__test_share=min(share, 0.5),
    )


def _fit_layers(choice: Choice, machine: Machine) -> None:
    """Latent layers where windows are long; the tokenizer then learns from shorter ones."""
    window, on = choice.values["tokenize"], "gpu" if machine.gpu_gb else "cpu"
    tokens = window["frames"] // DOWNSAMPLE[0] * (window["size"] // DOWNSAMPLE[1]) ** 2
    if tokens > MAX_DENSE[on]:
        choice.set(
            f"a window has {tokens:,} tokens: what is known of it goes through latent ones, so "
            "that cost grows linearly.",
            model__layers=list(LATENT_LAYERS),
            model__width=LATENT_WIDTH[on],
            model__num_latents=NUM_LATENTS[on],
        )
    if window["frames"] > WINDOWS[0]:
        choice.set("a tokenizer learns from short windows.", fit_tokenizer__frames=WINDOWS[0])
        batch = window["batch_size"] * WINDOWS[0]
        choice.set(
            f"as many frames at once as with windows of {WINDOWS[0]}.",
            tokenize__batch_size=max(1, batch // window["frames"]),
        )


def _fit_hop(choice: Choice, lengths: Sequence[int], machine: Machine) -> None:
    window = choice.values["tokenize"]
    span = (window["frames"] - 1) * window.get("stride", 1) + 1
    limit = MAX_WINDOWS["gpu" if machine.gpu_gb else "cpu"]
    starts = sum(max(0, length - span + 1) for length in lengths)
    hop = next((h for h in (1, 2, 4, 8) if starts <= h * limit), 16)
    reason = f"about {starts // hop:,} windows in all."
    if shorter := sum(length < span for length in lengths):
        reason += f" {shorter} videos are shorter than a window: they will be named and left out."
    choice.set(reason, tokenize__hop=hop)


def _fit_batches(choice: Choice, machine: Machine) -> None:
    values = choice.values
    reason = f"this machine has {machine}."
    large = machine.cores >= 8 if machine.gpu_gb is None else machine.gpu_gb >= 20
    fit, train = values["fit_tokenizer"]["batch_size"], values["train"]["batch_size"]
    if machine.gpu_gb is None:
        fit, train = (2 * fit, 2 * train) if large else (fit, train)
    elif not large:
        fit, train = fit // 2, train // 2
    cache = min(4.0, max(0.25, round(machine.memory_gb / 4, 2)))
    choice.set(
        reason,
        fit_tokenizer__batch_size=fit,
        train__batch_size=train,
        fit_tokenizer__cache_gb=cache,
        train__memory_gb=min(values["train"]["memory_gb"], cache),
    )


def _fit_codebook(choice: Choice, num_frames: int) -> None:
    window = choice.values["tokenize"]
    apart = num_frames // (window["frames"] * window.get("stride", 1))
    codes = 64 if apart < FEW else 256 if apart < MANY else 1024
    choice.set(
        f"your videos hold {apart:,} windows without an overlap: 64 vectors below {FEW}, 256 below "
        f"{MANY:,}, else 1,024. More show more, and are harder to predict.",
        tokenizer__codebook_size=codes,
    )
