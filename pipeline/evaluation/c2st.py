"""Can a classifier tell samples from training windows? What looks wrong in places, all of it.

A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): a small network learns to
tell cubes of tokens of samples from those of training windows, and is asked about others. It finds
by itself what sets them apart, be it the shape of things or how they move from one latent frame to
the next. The Fréchet distance compares averages of whole videos, and called fish that were too long
or tangled as near to real ones as better fish (docs/quality.md).

Held-out windows are told from training windows the same way, as many of them: nobody needs to draw
videos that are nearer to training than those are. What memorises comes to 0.5 too: see `copying`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.evaluation.copying import Content
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import (
    ComparedSets,
    Tokens,
    real_halves,
    why_nothing_is_held_out,
)
from pipeline.metrics import roc_auc
from pipeline.seeds import step_seed
from pipeline.store.reader import TokenStore, read_rows

C2ST_KEYS = ("c2st_samples", "c2st_real")
SIDE = 3
"""Of a cube of tokens: of 12 frames and 24 x 24 pixels if a token is of 4 x 8 x 8."""
MIN_WINDOWS, MAX_WINDOWS = 8, 256
"""Of half a set: fewer say nothing, more take time."""
MAX_CUBES = 1 << 16
"""Of half a set; of more, as many are drawn."""
ENTRIES, WIDTH, HIDDEN = 8, 96, 0.2
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 600, 256, 3e-3, 0.05
HALVES = 2
C2ST_DEFINITION = (
    "classifier two-sample test (Lopez-Paz & Oquab 2017): how often a classifier of cubes of "
    f"{SIDE}x{SIDE}x{SIDE} tokens finds the training window, given one cube of training and one "
    "other (area under the ROC curve); 0.5: by chance. It learns from half of both sets and is "
    "asked about the other half, in turn; halves of real windows share no pixel. Only cubes around "
    "a token that tells something (see copying), all sets of as many windows"
)


class CubeClassifier(nn.Module):
    """Tells cubes of tokens apart: embeddings of tokens, then a small MLP."""

    def __init__(self, codebook_size: int, places: int, generator: Generator) -> None:
        super().__init__()
        self.unseen = codebook_size
        self.embedding = nn.Embedding(codebook_size + 1, ENTRIES)
        linear = [nn.Linear(places * ENTRIES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)]
        self.mlp = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for layer in linear:
                layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()

    def forward(self, cubes: Int[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Returns scores, larger for what seems to be a sample."""
        scores: Tensor = self.mlp(self.embedding(cubes).flatten(1)).squeeze(1)
        return scores

    def learn(
        self, known: Int[Tensor, "N P"], other: Int[Tensor, "M P"], generator: Generator
    ) -> None:
        """Learns to score `other` higher than `known`, from batches of as many of both.

        A fifth of the tokens is left out, each time another: so no cube is learned by heart.
        """
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        device = self.embedding.weight.device
        wanted = torch.tensor([0.0, 1.0], device=device).repeat_interleave(BATCH)
        for _ in range(STEPS):
            drawn = [
                cubes[torch.randint(len(cubes), (BATCH,), generator=generator)]
                for cubes in (known, other)
            ]
            batch = torch.cat(drawn)
            left_out = torch.rand(batch.shape, generator=generator) < HIDDEN
            batch = batch.masked_fill(left_out, self.unseen).to(device)
            optimizer.zero_grad()
            torch.autograd.backward(binary_cross_entropy_with_logits(self(batch), wanted))
            optimizer.step()
            falling.step()

    @torch.inference_mode()
    def scores(self, cubes: Int[Tensor, "N P"]) -> Float[np.ndarray, " N"]:
        """Returns the scores of many cubes."""
        device = self.embedding.weight.device
        parts = [self(part.to(device)).cpu() for part in torch.split(cubes, MAX_CUBES >> 3)]
        scores: np.ndarray = torch.cat(parts).double().numpy()
        return scores


def cubes_of(
    tokens: Tokens, tells: Bool[np.ndarray, " K"], generator: Generator
) -> Int[Tensor, "N P"]:
    """Returns the cubes around tokens that tell something; of more than `MAX_CUBES`, so many.

    Where a window is less than `SIDE` long, high or wide, cubes are as small as it is.
    """
    side = tuple(min(SIDE, size) for size in tokens.shape[1:])
    around = sliding_window_view(tokens, side, axis=(1, 2, 3))
    middle = around[(..., *(size // 2 for size in side))]
    places = np.argwhere(tells[middle])
    if len(places) > MAX_CUBES:
        chosen = torch.randperm(len(places), generator=generator)[:MAX_CUBES]
        places = places[chosen.numpy()]
    cubes = around[tuple(places.T)].reshape(len(places), math.prod(side))
    return torch.from_numpy(cubes.astype(np.int64))


def told_apart(
    known: Sequence[Tokens],
    other: Sequence[Tokens],
    tells: Bool[np.ndarray, " K"],
    *,
    seed: int,
    device: str = "cpu",
) -> float | None:
    """Measures how well `other` windows are told from `known` ones, both given as two halves.

    0.5 is by chance, 1 always. None if half of a set holds nothing that tells something.
    """
    found = []
    for half in range(HALVES):
        generator = Generator().manual_seed(step_seed(seed, half, 0))
        ours, theirs, known_cubes, other_cubes = (
            cubes_of(tokens[which], tells, generator)
            for which in (half, 1 - half)
            for tokens in (known, other)
        )
        if not all(map(len, (ours, theirs, known_cubes, other_cubes))):
            return None
        classifier = CubeClassifier(len(tells), ours.shape[1], generator).to(device)
        classifier.learn(ours, theirs, generator)
        found.append(roc_auc(classifier.scores(known_cubes), classifier.scores(other_cubes)))
    return math.fsum(found) / len(found)


def measure_c2st(
    evaluation: Evaluation,
    sets: ComparedSets,
    samples: TokenStore | None,
    *,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures how well samples and held-out windows are told from training; returns the protocol.

    Writes down why, where that cannot be.
    """
    if why := why_nothing_is_held_out(sets, samples):
        evaluation.skip(C2ST_KEYS, why)
        return {}
    assert sets.samples is not None
    store = sets.store
    rows = real_halves(store, "train", limit=MAX_WINDOWS, seed=seed)
    count = min(len(sets.samples) // HALVES, len(sets.reference), len(sets.real), MAX_WINDOWS)
    if min(count, *map(len, rows)) < MIN_WINDOWS:
        evaluation.skip(C2ST_KEYS, _too_few(sets, rows))
        return {}
    known = [read_rows(store, "train", half) for half in rows]
    tells = Content.of(sets.known, sets.held_out()).tells
    halves = {
        "samples": (sets.samples[:count], sets.samples[count : HALVES * count]),
        "real": (sets.reference[:count], sets.real[:count]),
    }
    for who, others in halves.items():
        found = told_apart(known, others, tells, seed=seed, device=device)
        if found is None:
            evaluation.skip([f"c2st_{who}"], "half of a set holds nothing but the commonest tokens")
        else:
            evaluation.add({f"c2st_{who}": found})
    return {"num_windows": HALVES * count, "num_train": sum(map(len, rows)), "how": C2ST_DEFINITION}


def _too_few(sets: ComparedSets, rows: Sequence[Sequence[int]]) -> str:
    """Says what there is, and what was needed."""
    assert sets.samples is not None
    first, second = map(len, rows)
    return (
        f"needs halves of {MIN_WINDOWS} windows, but there are {len(sets.samples)} samples, and "
        f"that share no pixel {first} and {second} training windows, {len(sets.reference)} and "
        f"{len(sets.real)} held-out ones"
    )
