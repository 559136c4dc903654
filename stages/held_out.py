"""How well a model guesses held-out tokens, given what is known beside them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from mebt import Conditions, MeBT, MeBTConfig
from mebt.objective import HELD_OUT_RATIOS, WITHOUT, HeldOut, held_out_means
from pipeline.device import send
from pipeline.seeds import step_seed
from pipeline.store.reader import TokenStore, read_rows, spread_rows
from stages.conditions import StoreConditions

MASK_DRAW = -1
"""Seed of masks beside those of a rank's own draws, 0, 1, …"""


def mask_generator(seed: int, step: int) -> Generator:
    """Returns what draws how much is hidden at a step, or which of a per cent of held-out ones."""
    return Generator().manual_seed(step_seed(seed, step, MASK_DRAW))


def held_out_windows(store: TokenStore, most: int, model: MeBTConfig) -> HeldOut:
    """Reads windows evenly spread over the test split, or without one over the train split."""
    split = "test" if "test" in store.splits else "train"
    rows = spread_rows(store.num_windows(split), most)
    tokens = torch.from_numpy(read_rows(store, split, rows)).flatten(1)
    if not model.conditions:
        return tokens, None
    return tokens, StoreConditions(store, split, model, allowed=True).read(rows)


def validate(
    model: nn.Module, held_out: HeldOut, *, seed: int, batch_size: int
) -> dict[str, float]:
    """Measures held-out tokens at fixed mask ratios, with the same masks each time.

    Those that have conditions once without them, too, where all is hidden.
    """
    device = next(model.parameters()).device
    tokens, conditions = held_out

    def batches(_: str, *, bare: bool = False) -> Iterator[HeldOut]:
        parts: Any = torch.split(tokens, batch_size)
        given: Sequence[Conditions | None] = [None] * len(parts)
        if conditions is not None and not bare:
            given = [x.changed(lambda y: send(y, device)) for x in conditions.chunks(batch_size)]
        for part, known in zip(parts, given, strict=True):
            yield send(part, device), known

    generator = partial(mask_generator, seed)
    means = held_out_means(model, batches, mask_ratios=HELD_OUT_RATIOS, generator=generator)
    measured = {"val_loss": sum(loss for loss, _ in means.values()) / len(means)}
    for percent, (loss, accuracy) in means.items():
        measured |= {f"val_loss/mask_{percent}": loss, f"val_accuracy/mask_{percent}": accuracy}
    if conditions is not None:
        bare = partial(batches, bare=True)
        without = held_out_means(model, bare, mask_ratios=[1.0], generator=generator)
        measured[WITHOUT], _ = without[100]
    return measured


def means_of(
    model: MeBT, conditions: StoreConditions | None, device: str
) -> Callable[..., Mapping[int, tuple[float, float]]]:
    """Returns `held_out_means` for batches of tokens and which rows of a split these are."""

    def means(
        batches: Callable[[str], Iterable[tuple[Tensor, Sequence[int]]]], **how: Any
    ) -> Mapping[int, tuple[float, float]]:
        def with_conditions(which: str) -> Iterator[HeldOut]:
            for tokens, rows in batches(which):
                given = None
                if conditions is not None:
                    given = conditions.read(rows).changed(lambda x: x.to(device))
                yield tokens, given

        return held_out_means(model, with_conditions, **how)

    return means
