"""Reads a published MeBT checkpoint: tensors of both models, hyper-parameters, training clips."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import read_yaml
from pipeline.errors import CheckpointError
from pipeline.published.checkpoint import Foreign, read_foreign, whole_config

FIRST_STAGE = "first_stage_model."
"""Opens the names of the VQGAN's tensors in a MeBT's checkpoint."""


@dataclass(frozen=True)
class PublishedMeBT:
    """A published MeBT checkpoint, in parts. Names and values are the published ones."""

    checkpoint: Foreign
    hparams: Mapping[str, Any]
    """The section `model.params`, with the mask's `shape`."""
    data: Mapping[str, Any]
    """The section `data`, about the clips that it was trained on; empty if the file lacks it."""
    grid: tuple[int, int, int]
    """Latent grid of one window, (t, h, w) in tokens: the mask's shape."""
    vqgan: dict[str, Tensor]
    """Tensors of the VQGAN inside, without FIRST_STAGE."""
    mebt: dict[str, Tensor]


def read_mebt(path: Path, config: Path | None = None) -> PublishedMeBT:
    """Reads a checkpoint; hyper-parameters come from `config`, a published YAML, if it is given.

    Nothing in the file runs. Raises CheckpointError, in one line, if a part of it is missing.
    """
    checkpoint = read_foreign(path, wanted="a MeBT")
    params, mask, data = _sections_of_yaml(config) if config else _sections_inside(checkpoint)
    if not params or not mask:
        raise CheckpointError(
            f"{config or path} holds no hyper-parameters of a MeBT: give the published YAML "
            "file, with model.params and model.mask.params, with --config."
        )
    vqgan, mebt = _split(checkpoint)
    hparams = {**params, "shape": _section(mask, "params").get("shape")}
    grid = hparams["shape"]
    if not isinstance(grid, list) or len(grid) != 3 or not all(map(_count, grid)):
        raise CheckpointError(f"{path}: the mask's shape must be (t, h, w), found {grid!r}.")
    return PublishedMeBT(checkpoint, hparams, data, (grid[0], grid[1], grid[2]), vqgan, mebt)


def _sections_of_yaml(config: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns `model.params`, `model.mask` and `data`."""
    tree = read_yaml(config)
    model = _section(tree, "model")
    return _section(model, "params"), _section(model, "mask"), _section(tree, "data")


def _sections_inside(checkpoint: Foreign) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the same three; only the first two are saved, but they remember the whole config."""
    tree = checkpoint.hyper_parameters
    params, mask = _section(tree, "transformer_config"), _section(tree, "mask_config")
    if "params" in params:  # Either the section itself or the one around it was saved.
        params = _section(params, "params")
    saved = checkpoint.content.get("hyper_parameters")
    node = saved.get("transformer_config") if isinstance(saved, dict) else None
    return params, mask, _section(whole_config(node), "data")


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _split(checkpoint: Foreign) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors of the VQGAN and those of the MeBT."""
    vqgan, mebt = {}, {}
    for key, tensor in checkpoint.state.items():
        if key.startswith(FIRST_STAGE):
            vqgan[key.removeprefix(FIRST_STAGE)] = tensor
        else:
            mebt[key] = tensor
    if not vqgan:
        raise CheckpointError(
            f"{checkpoint.path} lacks the VQGAN that a published MeBT has inside ({FIRST_STAGE}*), "
            "so its tokens could not be decoded."
        )
    return vqgan, mebt


def _count(value: Any) -> int | None:
    """Returns a whole number above 0 as it is, anything else as None."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count else None


def likely_downsample(
    published: PublishedMeBT, num_stages: int
) -> tuple[tuple[int, int, int], bool]:
    """Returns frames and pixels per token, (t, h, w), and whether that is a guess.

    A VQGAN of `num_stages` tells only the largest of the three. The clips' frames and pixels tell
    all, if they agree with it; else the axes shrink in proportion to the published 4x8x8.
    """
    largest, grid = 1 << num_stages, published.grid
    frames, size = (_count(published.data.get(k)) for k in ("sequence_length", "resolution"))
    if frames and size and not (frames % grid[0] or size % grid[1] or size % grid[2]):
        factors = (frames // grid[0], size // grid[1], size // grid[2])
        if max(factors) == largest and all(math.log2(factor).is_integer() for factor in factors):
            return factors, False
    return (max(1, largest // 2), largest, largest), True


def clip_window(
    published: PublishedMeBT, downsample: tuple[int, int, int]
) -> dict[str, int | None]:
    """Returns frames, stride and size of the clips that it was trained on; None: not known."""
    frames, height, width = (
        n * factor for n, factor in zip(published.grid, downsample, strict=True)
    )
    return {
        "frames": frames,
        "stride": _count(published.data.get("sample_every_n_frames")),
        "size": height if height == width else None,
    }
