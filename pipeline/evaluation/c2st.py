"""Can a classifier tell samples from training windows? What looks wrong in places, all of it.

A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): a small network learns to
tell cubes of tokens of samples from those of training windows, and is asked about others. It finds
by itself what sets them apart, be it the shape of things or how they change from one latent frame
to the next. The Fréchet distance compares averages of whole videos, and called fish that were too
long or tangled as near to real ones as better fish (docs/quality.md).

Both sets are cut into halves at random. So training windows that are taken out of training and put
in the place of samples come to 0.5, and so do copies of them: see `copying`. Other videos, however
real, come to more: training windows that are learned from overlap with those that are asked about.
As many held-out windows are measured the same way. They are of other videos or moments, and overlap
with one another as samples do not, so they are an upper end: samples should be harder to tell.

Tokens are compared by their numbers, so where most occur once or twice little can be learned.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.evaluation.copying import Content
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import ComparedSets, Tokens, why_nothing_is_held_out
from pipeline.metrics import roc_auc
from pipeline.seeds import step_seed
from pipeline.store.reader import TokenStore, read_rows

C2ST_KEYS = ("c2st_samples", "c2st_real")
SIDE = 3
"""Of a cube of tokens: of 12 frames and 24 x 24 pixels if a token is of 4 x 8 x 8."""
MIN_WINDOWS, MAX_WINDOWS = 16, 256
"""Of a set, and of half a set: fewer say nothing, more take time."""
MAX_CUBES = 1 << 16
"""Of half a set; of more, as many are drawn."""
ENTRIES, WIDTH, LEFT_OUT = 8, 96, 0.2
"""Of the classifier: entries of an embedding, units of a layer, share of tokens left out."""
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 600, 256, 3e-3, 0.05
HALVES_DRAW = 1
Halves = tuple[Int[Tensor, "N P"], Int[Tensor, "M P"]]
"""Cubes of two halves of a set."""
C2ST_DEFINITION = (
    "classifier two-sample test (Lopez-Paz & Oquab 2017): how often a classifier of cubes of "
    f"{SIDE}x{SIDE}x{SIDE} tokens finds the training window, given one cube of training and one "
    "other (area under the ROC curve); 0.5: by chance. It learns from half of both sets, drawn at "
    "random, and is asked about the other half, in turn. Only cubes around a token that tells "
    "something (see copying); as many samples as held-out windows"
)


class CubeClassifier(nn.Module):
    """Tells cubes of tokens apart: embeddings of tokens, then a small MLP."""

    vocabulary: Tensor

    def __init__(self, cubes: Int[Tensor, "N P"], generator: Generator) -> None:
        """Has an embedding of each token of the cubes that it is to learn from, and of no other."""
        super().__init__()
        self.register_buffer("vocabulary", torch.unique(cubes))
        self.embedding = nn.Embedding(len(self.vocabulary) + 1, ENTRIES)
        linear = [
            nn.Linear(cubes.shape[1] * ENTRIES, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 1),
        ]
        self.mlp = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for layer in linear:
                layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()

    def forward(self, cubes: Int[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Returns scores, larger for what seems to be a sample.

        Tokens that it does not know, and those left out as -1, all have the last embedding.
        """
        last = len(self.vocabulary)
        places = torch.searchsorted(self.vocabulary, cubes).clamp(max=last - 1)
        places = places.where(self.vocabulary[places] == cubes, last)
        scores: Tensor = self.mlp(self.embedding(places).flatten(1)).squeeze(1)
        return scores

    def learn(
        self, known: Int[Tensor, "N P"], other: Int[Tensor, "M P"], generator: Generator
    ) -> None:
        """Learns to score `other` higher than `known`, from batches of as many of both.

        `LEFT_OUT` of the tokens are left out, each time others: so no cube is learned by heart.
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
            left_out = torch.rand(batch.shape, generator=generator) < LEFT_OUT
            batch = batch.masked_fill(left_out, -1).to(device)
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


def halves_of(
    windows: Tokens, count: int, tells: Bool[np.ndarray, " K"], generator: Generator
) -> Halves:
    """Deals out windows at random, `count` to each half and the rest to none; returns the cubes."""
    order = torch.randperm(len(windows), generator=generator).numpy()
    first, second = order[:count], order[count : 2 * count]
    return cubes_of(windows[first], tells, generator), cubes_of(windows[second], tells, generator)


def told_apart(known: Halves, other: Halves, *, seed: int, device: str = "cpu") -> float | None:
    """Measures how well cubes of `other` windows are told from those of `known` ones.

    0.5 is by chance, 1 always. None if a half holds no cube.
    """
    if not all(map(len, (*known, *other))):
        return None
    found = []
    for learned, asked in ((0, 1), (1, 0)):
        generator = Generator().manual_seed(step_seed(seed, learned, 0))
        ours, theirs = known[learned], other[learned]
        classifier = CubeClassifier(torch.cat([ours, theirs]), generator).to(device)
        classifier.learn(ours, theirs, generator)
        found.append(roc_auc(classifier.scores(known[asked]), classifier.scores(other[asked])))
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
    if why := _why_not(sets, samples):
        evaluation.skip(C2ST_KEYS, why)
        return {}
    assert sets.samples is not None
    store, held_out = sets.store, sets.held_out()
    generator = Generator().manual_seed(step_seed(seed, 0, HALVES_DRAW))
    rows = torch.randperm(store.num_windows("train"), generator=generator)[: 2 * MAX_WINDOWS]
    tells = Content.of(sets.known, held_out).tells
    train = read_rows(store, "train", sorted(rows.tolist()))
    known = halves_of(train, len(train) // 2, tells, generator)
    count = min(len(sets.samples) // 2, len(held_out) // 2, MAX_WINDOWS)
    for who, windows in (("samples", sets.samples), ("real", held_out)):
        other = halves_of(windows, count, tells, generator)
        found = told_apart(known, other, seed=seed, device=device)
        if found is None:
            evaluation.skip([f"c2st_{who}"], "half of a set holds nothing but the commonest tokens")
        else:
            evaluation.add({f"c2st_{who}": found})
    return {"num_windows": 2 * count, "num_train": len(rows), "how": C2ST_DEFINITION}


def _why_not(sets: ComparedSets, samples: TokenStore | None) -> str | None:
    """Says why samples cannot be told from training, if so."""
    if why := why_nothing_is_held_out(sets, samples):
        return why
    assert samples is not None and sets.samples is not None
    if samples.info.extra.get("given"):
        return "the samples began from real windows, so a part of them is real"
    counts = {
        "samples": len(sets.samples),
        "held-out windows": len(sets.held_out()),
        "training windows": sets.store.num_windows("train"),
    }
    if min(counts.values()) >= MIN_WINDOWS:
        return None
    found = ", ".join(f"{count} {what}" for what, count in counts.items())
    limit = "evaluate.num_videos limits the first two"
    return f"needs {MIN_WINDOWS} of each, but there are {found}; {limit}"
