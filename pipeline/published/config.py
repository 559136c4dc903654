"""Turns published YAML configs into sections of params.yaml; no key of them is ignored silently."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import suggest
from pipeline.errors import ConfigError

PARAMS, MASK, VQGAN = "model.params.", "model.mask.params.", "model.vqvae.params."

MODEL_KEYS = ("n_layer", "n_head", "n_embd", "sos_emb", "mode")
DROPOUTS = ("embd_pdrop", "resid_pdrop", "attn_pdrop")
USED = (
    *(PARAMS + name for name in (*MODEL_KEYS, *DROPOUTS)),
    PARAMS + "block_size",
    PARAMS + "vocab_size",
    PARAMS + "first_stage_vocab_size",
    PARAMS + "avg_loss",
    PARAMS + "label_smoothing",
    PARAMS + "t_prior",
    MASK + "schedule",
    MASK + "shape",
    MASK + "budget",
    VQGAN + "ckpt_path",
    "data.sequence_length",
    "data.resolution",
    "data.batch_size",
    "data.image_folder",
    "data.sample_every_n_frames",
    "data.data_path",
    "exp.exact_lr",
    "exp.weight_decay",
    "exp.warmup_steps",
    "exp.cosine_lr",
    "exp.accumulate_grad_batches",
)
"""Keys that have a say in params.yaml, or in the commands."""

ONLY_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    PARAMS + "unconditional": ((True,), "only unconditional models are known here"),
    PARAMS + "vtokens": ((False,), "bring stored tokens in with `mebt tokens import`"),
    "data.vtokens": ((False,), "bring stored tokens in with `mebt tokens import`"),
    PARAMS + "sample_every_n_latent_frames": ((0,), "latent frames are never skipped here"),
    PARAMS + "beta_params": ((None,), "the mask ratio is drawn evenly here"),
    PARAMS + "beta_iter": ((None, 0), "the mask ratio is drawn evenly here"),
    MASK + "t_range": (([0, 1],), "the mask ratio is drawn from all of 0 … 1 here"),
}
"""Keys of which one value is supported: key -> those values, and why no other."""

UNREAD = (
    PARAMS + "n_unmasked",
    PARAMS + "vtokens_pos",
    PARAMS + "class_cond_dim",
    PARAMS + "first_stage_key",
    PARAMS + "cond_stage_key",
    PARAMS + "sos_token",
    PARAMS + "pkeep",
    PARAMS + "ckpt_path",
    PARAMS + "ignore_keys",
    MASK + "iid",
    MASK + "max_token",
    MASK + "method",
    "data.smap_cond",
    "data.smap_only",
    "data.text_cond",
    "data.vtokens_pos",
    "data.stft_data",
    "data.preprocessed_hdf5",
)
DROPPED = {
    "model.target": "there is one model here",
    "model.mask.target": "there is one way of masking here",
    "model.vqvae.target": "there is one tokenizer here",
    VQGAN + "ignore_keys": "what is left out of a checkpoint is known here",
    PARAMS + "vis_epoch": "previews are drawn with `mebt sample`",
    "data.num_workers": "tokens are read without workers here",
    "data.image_channels": "videos have three channels",
    "data.spatial_length": "it matters for stored tokens only",
    "data.latent_shape": "the mask's shape says it",
    **dict.fromkeys(UNREAD, "it has no effect in the published code"),
}
"""Keys without effect -> why."""

PRIORS = {
    "longest": ("longest", 30_000.0),
    "gaussian2": ("gaussian", 30_000.0),
    "gaussian100000_2": ("gaussian", 100_000.0),
}
"""Published length priors -> ours, and its time scale."""

EXPERIMENTS = {"sky": ("sky", "stl"), "taichi": ("taichi",), "ucf": ("ucf",)}
"""Published data sets -> words in a path that tell them."""

SAMPLING: dict[tuple[str, int], tuple[int, float, int, int, float]] = {
    ("sky", 16): (32, 8.0, 2, 2, 0.7),
    ("sky", 128): (32, 4.0, 2, 2, 0.7),
    ("taichi", 16): (64, 2.0, 2, 8, 0.3),
    ("taichi", 128): (32, 4.0, 2, 4, 0.1),
    ("ucf", 16): (128, 6.0, 4, 4, 0.7),
    ("ucf", 128): (32, 2.0, 32, 2, 0.1),
}
"""(data set, frames) -> draft steps, confidence temperature; groups, rounds and temperature of
revision. The published YAML files do not hold these; scripts beside them do."""

FIT = {
    "max_steps": 30_000,
    "warmup_steps": 1000,
    "clip_norm": 1.0,
    "log_every": 50,
    "validate_every": 1000,
    "checkpoint_every": 1000,
}
"""The section `fit_tokenizer`, of which no published config speaks."""


@dataclass(frozen=True)
class Published:
    """A published config: its leaves by dotted key."""

    path: Path
    values: Mapping[str, Any]

    @property
    def dropped(self) -> dict[str, str]:
        """Keys of this config that have no effect, with the reason."""
        return {key: DROPPED[key] for key in self.values if key in DROPPED}

    @property
    def experiment(self) -> str | None:
        """The published data set, by the words in its paths; None if they name none or several."""
        told_by = ("data.data_path", VQGAN + "ckpt_path")
        paths = [self.path.stem, *(self.values.get(key) for key in told_by)]
        words = re.split(r"[^a-z]+", " ".join(map(str, paths)).lower())
        names = [name for name, known in EXPERIMENTS.items() if {*known} & {*words}]
        return names[0] if len(names) == 1 else None

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Returns a value of the type `kind`; without a default it must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problem = "is missing" if value is None else f"is {value!r}"
            raise ConfigError(f"{self.path}: {key} {problem}; it must be of type {kind.__name__}.")
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(f"{self.path}: {key} must not be negative, got {value}.")
        return value


def read_leaves(path: Path, tree: Mapping[str, Any]) -> Published:
    """Checks every key of a published config. Raises ConfigError on one that is unknown."""
    known = (*USED, *ONLY_VALUES, *DROPPED)
    values = dict(_leaves(tree, "", known))
    for key, value in values.items():
        if key not in known:
            raise ConfigError(
                f"{path}: unknown key {key!r}; {suggest(key, known)}"
                "a published config has the sections model, data and exp."
            )
        if key in ONLY_VALUES and value not in ONLY_VALUES[key][0]:
            raise ConfigError(f"{path}: {key} is {value!r}, but {ONLY_VALUES[key][1]}.")
    return Published(path, values)


def _leaves(tree: Mapping[Any, Any], start: str, known: tuple[str, ...]) -> Iterator[Any]:
    for name, value in tree.items():
        key = f"{start}{name}"
        is_section = any(other.startswith(f"{key}.") for other in known)
        if isinstance(value, Mapping) and is_section:
            yield from _leaves(value, f"{key}.", known)
        elif not (is_section and value is None):
            yield key, value


def window(published: Published) -> tuple[int, int, int, tuple[int, int, int]]:
    """Returns frames, stride and size of a window, and its latent grid."""
    length = published.get("data.sequence_length", int)
    stride = published.get("data.sample_every_n_frames", int, 1) or 1
    # The frame-list loader skips frames and still returns all of them, the others return fewer.
    frames = length if published.get("data.image_folder", bool, False) else length // stride
    size = published.get("data.resolution", int)
    grid = published.get(MASK + "shape", list)
    if len(grid) != 3 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ConfigError(f"{published.path}: {MASK}shape must be (t, h, w), got {grid!r}.")
    t, h, w = grid
    if frames % t or size % h or size % w or min(frames, size) < 1:
        raise ConfigError(
            f"{published.path}: {frames} frames of {size}x{size} pixels do not divide into a grid "
            f"of {t}x{h}x{w} ({MASK}shape)."
        )
    block = published.get(PARAMS + "block_size", int, t * h * w)
    if block != t * h * w:
        raise ConfigError(
            f"{published.path}: {PARAMS}block_size is {block}, but {MASK}shape holds {t * h * w}."
        )
    return frames, stride, size, (t, h, w)


def train_section(published: Published) -> dict[str, Any]:
    """Returns what the section `train` has of its own."""
    t, h, w = window(published)[3]
    prior = published.get(PARAMS + "t_prior", str, "longest")
    if prior not in PRIORS:
        raise ConfigError(
            f"{published.path}: unknown {PARAMS}t_prior {prior!r}; "
            f"{suggest(prior, list(PRIORS))}known: {', '.join(PRIORS)}."
        )
    length_prior, time_scale = PRIORS[prior]
    budget = published.get(MASK + "budget", int, t * h * w)
    average = published.values.get(PARAMS + "avg_loss")
    if not isinstance(average, bool):
        average = published.get(PARAMS + "avg_loss", float, 0.0)
    accumulate = published.get("exp.accumulate_grad_batches", int, 1)
    return {
        "max_steps": 2_000_000,
        "batch_size": published.get("data.batch_size", int) * accumulate,
        "accumulate": accumulate,
        "learning_rate": published.get("exp.exact_lr", float),
        "warmup_steps": published.get("exp.warmup_steps", int, 0),
        "cosine": published.get("exp.cosine_lr", bool, False),
        "stable_share": 0.0,
        "clip_norm": None,
        "ema_decay": 0.0,
        "precision": "32-true",
        "log_every": 50,
        "validate_every": 5000,
        "checkpoint_every": 5000,
        "schedule": published.get(MASK + "schedule", str, "linear"),
        "empty_share": 0.0,
        "average_loss": float(average),
        "label_smoothing": published.get(PARAMS + "label_smoothing", float, 0.0),
        "budget": None if budget >= t * h * w else budget,
        "length_prior": length_prior,
        "time_scale": time_scale,
        "optimizer": "adamw",
        "weight_decay": published.get("exp.weight_decay", float, 0.01),
        "init_std": 0.02,
        "position_init": "normal",
        "balance": "video",
        "preview_every": 20_000,
    }


def sections(published: Published, experiment: str | None) -> dict[str, dict[str, Any]]:
    """Returns what each section of params.yaml has of its own; all else keeps its default.

    The section `model` is left to who knows the model. How an `experiment` was sampled and measured
    is told if its windows are of a published length.
    """
    frames, stride, size, (t, h, w) = window(published)
    many = 1 if frames > 32 else 4  # Long windows: fewer at a time.
    videos, runs = (512, 5) if frames == 128 else (2048, 10)  # Each run has samples of its own.
    sample: dict[str, Any] = {"precision": "32-true"}
    evaluate = {
        "split": "train" if experiment == "ucf" else "test",
        "num_videos": videos,
        "batch_size": 2 * many,
    }
    if (experiment or "", frames) in SAMPLING:
        sample |= _sampling(experiment or "", frames)
        sample |= {"num_samples": videos * runs, "batch_size": 4 * many}
        evaluate |= {"protocol": f"mebt-{frames}f", "runs": runs}
    return {
        "extract": {"size": size},
        "tokenizer": {
            "codebook_size": published.get(PARAMS + "vocab_size", int, 16384),
            "downsample": [frames // t, size // h, size // w],
            "norm": "batch",
        },
        "fit_tokenizer": FIT,
        "tokenize": {"frames": frames, "stride": stride, "size": size, "batch_size": 2 * many},
        "train": train_section(published),
        "sample": sample,
        "decode": {"batch_size": many},
        "evaluate": evaluate,
    }


def _sampling(experiment: str, frames: int) -> dict[str, Any]:
    """Returns how a published experiment draws a sample."""
    steps, confidence, groups, rounds, revise_temperature = SAMPLING[experiment, frames]
    is_long = frames == 128
    return {
        "bootstrap_steps": 64 if is_long else 0,
        "draft_steps": steps,
        "schedule": "cosine",
        "strategy": "confidence",
        "temperature": 1.0,
        "top_k": 32 if is_long else None,
        "confidence_temperature": confidence,
        "revise_rounds": rounds,
        "revise_groups": groups,
        "revise_temperature": revise_temperature,
    }


def commands(published: Published, params: Path) -> list[str]:
    """Returns the commands that carry the config's paths over: paths live on the command line."""
    data = str(published.values.get("data.data_path") or "DATA")
    vqgan = str(published.values.get(VQGAN + "ckpt_path") or "VQGAN.ckpt")
    lines = [["mebt", "import-tokenizer", vqgan, "--out", "tokenizer.safetensors"]]
    frames = data
    if not published.values.get("data.image_folder", False):
        frames = "frames"
        lines.append(["mebt", "extract", "--videos", data, "--out", frames])
    tokenizer = ["--tokenizer", "tokenizer.safetensors"]
    lines.append(["mebt", "tokenize", "--frames", frames, *tokenizer, "--out", "tokens"])
    lines.append(["mebt", "train", "--tokens", "tokens", "--out", "run"])
    with_params = ["--params", str(params)]
    return [shlex.join(words + (with_params if i else [])) for i, words in enumerate(lines)]
