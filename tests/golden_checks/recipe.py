"""Reads a golden case: its meta, its tensors, and weights that a recipe makes from integers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor


def load_meta(case: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((case / "meta.json").read_text())
    return meta


def load_case(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return load_meta(case), load_file(case / "io.safetensors")


def recipe_tensor(shape: list[int], *, seed: int, scale: float, offset: float) -> Tensor:
    """Pseudo-random values from a 32-bit integer hash of the flat index (murmur3's finaliser)."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    values = 2 * ((x >> np.uint32(8)) / 2**24) - 1
    return torch.from_numpy((offset + scale * values).astype(np.float32).reshape(shape))


def load_weights(case: Path, weights: dict[str, Any]) -> dict[str, Tensor]:
    """Published names -> float tensors, stored or made by recipe or both."""
    path = case / "weights.safetensors"
    state = load_file(path) if path.exists() else {}
    for name, spec in weights.get("tensors", {}).items():
        if "seed" in spec:
            shape = spec["shape"]
            state[name] = recipe_tensor(
                shape, seed=spec["seed"], scale=spec["scale"], offset=spec["offset"]
            )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
