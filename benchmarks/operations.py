"""Multiply-adds of the published models, counted from their shapes.

They are what the factor 1.0 of a benchmark stands for: all that the published code multiplies,
needed or not. An operation is a multiplication or an addition, so each multiply-add is two.
"""

from math import prod

from mebt import MeBTConfig
from mebt.masking import num_masked
from tokenizer import VQGANConfig

TRAINING = 3
"""A training pass multiplies each weight matrix twice more on its way back: for the gradient of its
input and for its own. The same holds for the two products of attention."""

Pass = tuple[int, int]
"""Context and target tokens of one pass of MeBT over a window."""


def layer(queries: int, memory: int, width: int) -> int:
    """Multiply-adds of one layer whose `queries` read `memory`.

    A query is projected, and what it read once more: 2 D^2. Its MLP goes to 4 D and back: 8 D^2. A
    memory token becomes a key and a value: 2 D^2. A pair is compared, and weighs a value: 2 D.
    """
    return queries * 10 * width**2 + memory * 2 * width**2 + queries * memory * 2 * width


def forward(config: MeBTConfig, context: int, targets: int) -> int:
    """Multiply-adds of one pass of MeBT over a window, for the logits of all its targets."""
    latents, both = config.num_latents, context + targets
    of = {
        "encode": layer(latents, context, config.width),
        "process": layer(latents, latents, config.width),
        "decode": layer(targets, latents, config.width),
        "refresh": layer(latents, latents + targets, config.width),
        "dense": layer(both, both, config.width),
    }
    return sum(of[kind] for kind in config.layers) + targets * config.width * config.codebook_size


def bootstrap_passes(num_tokens: int, steps: int) -> list[Pass]:
    """Returns the passes from an empty window; each fixes one token."""
    return [(done, num_tokens - done) for done in range(steps)]


def draft_passes(num_tokens: int, steps: int, done: int = 0) -> list[Pass]:
    """Returns the passes of a cosine draft of a window of which so many tokens are fixed.

    Each predicts all that is open. One that would fix nothing is left out, as published.
    """
    passes = []
    for step in range(1, steps + 1):
        fixed = num_tokens - num_masked("cosine", step / steps, num_tokens)
        if fixed > done:
            passes.append((done, num_tokens - done))
            done = fixed
    return passes


def revise_passes(num_tokens: int, groups: int) -> list[Pass]:
    """Returns the passes of one round: equal groups, each predicted from all others."""
    size = num_tokens // groups
    return [(num_tokens - size, size)] * groups


def total(config: MeBTConfig, passes: list[Pass]) -> int:
    """Multiply-adds of several passes over one window."""
    return sum(forward(config, *counts) for counts in passes)


def encode(config: VQGANConfig, frames: int, side: int) -> int:
    """Multiply-adds of turning a clip into tokens: convolutions, then distances to the codebook.

    A convolution of edge k is k^3 * inputs * outputs for each place that it writes. A residual
    block has two of edge 3.
    """
    width, places = config.width, frames * side * side
    total = 3**3 * config.in_channels * width * places
    for strides in config.strides:
        places //= prod(strides)
        total += 4**3 * width * 2 * width * places
        width *= 2
        total += 2 * 3**3 * width**2 * places
    return total + (width + config.codebook_size) * config.embedding_dim * places


def decode(config: VQGANConfig, frames: int, side: int) -> int:
    """Multiply-adds of turning tokens into a clip.

    A transposed convolution is 4^3 * inputs * outputs for each place that it reads, those that the
    published code pads it with included. Two residual blocks follow each.
    """
    width, shape = config.width << config.num_stages, config.grid(frames, side, side)
    total = width * config.embedding_dim * prod(shape)
    for stage, strides in enumerate(config.strides):
        out = width if stage == 0 else width // 2
        padded = [n + 4 - stride for n, stride in zip(shape, strides, strict=True)]
        total += 4**3 * width * out * prod(padded)
        first, second, third = (n * stride for n, stride in zip(shape, strides, strict=True))
        width, shape = out, (first, second, third)
        total += 4 * 3**3 * width**2 * prod(shape)
    return total + 3**3 * width * config.in_channels * prod(shape)
