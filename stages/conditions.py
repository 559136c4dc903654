"""What a token store says beside tokens, as a model reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mebt import Conditions, MeBTConfig, MeBTShape, StateShape, prepare_states
from mebt.config import INTEGERS, LABEL, MAX_STATES
from pipeline.errors import ConfigError, TokenStoreError, user_errors
from pipeline.store.conditions import UNKNOWN, ConditionReader
from pipeline.store.layout import LABEL as LABEL_COLUMN
from pipeline.store.reader import TokenStore
from pipeline.store.states import States

TRAIN = "train"


@dataclass(frozen=True)
class Known:
    """What a model is to know of the conditions that its shape names."""

    labels: tuple[str, ...] = ()
    states: tuple[StateShape, ...] = ()
    said: str = ""
    """What they are, and of how many windows of the train split they are unknown."""


def known_conditions(shape: MeBTShape, store: TokenStore) -> Known:
    """Looks at a store for the conditions of a shape; reads the states of its train split.

    Raises PipelineError if the store does not have them, or if numbers that are to count kinds do
    not.
    """
    names = shape.condition_names
    if not names:
        return Known()
    ConditionReader(store, TRAIN, names)  # Says which are unknown.
    labels: tuple[str, ...] = ()
    states, said = [], []
    for asked, name in zip(shape.conditions, names, strict=True):
        if name == LABEL:
            places = ConditionReader(store, TRAIN, [LABEL]).read(
                np.arange(store.num_windows(TRAIN))
            )
            assert places.labels is not None
            missing = int((places.labels == UNKNOWN).sum())
            found = set(places.labels.tolist())
            labels = tuple(x for place, x in enumerate(store.label_names) if place in found)
            if not labels:
                raise TokenStoreError(f"{store.root}: {LABEL} is known of no window of {TRAIN}.")
            others = [name for name in store.label_names if name not in labels]
            never = f", never seen there: {listed(others)}" if others else ""
            said.append(f"{LABEL} ({len(labels)} names{_missing(missing, store)}{never})")
            continue
        if asked.endswith(f":{INTEGERS}"):
            state, missing, unseen = _kinds(store, name)
            numbers, never = f"{state.kinds} kinds", f", never seen: {unseen}" if unseen else ""
        else:
            state, missing = _numbers(store, name)
            numbers, never = f"{state.numbers} numbers", ""
        states.append(state)
        said.append(f"{name} ({numbers} a latent frame{_missing(missing, store)}{never})")
    return Known(labels, tuple(states), ", ".join(said))


def _missing(count: int, store: TokenStore) -> str:
    total = store.num_windows(TRAIN)
    return f", not known of {count:,} of {total:,} windows" if count else ""


def _parts(store: TokenStore, split: str, name: str) -> Iterator[NDArray[np.float32]]:
    """Yields the numbers of one name, shard by shard [n, frames, width]."""
    reader = ConditionReader(store, split, [name])
    for shard in range(store.num_shards(split)):
        yield reader.read(np.arange(*store.shard_rows(split, shard))).states[name]


def _numbers(store: TokenStore, name: str) -> tuple[StateShape, int]:
    """Measures mean and deviation; counts windows in which a number is not known."""
    count, missing = np.zeros(1, np.int64), 0
    sums = squares = np.zeros(1)
    for values in _parts(store, TRAIN, name):
        missing += int(np.isnan(values).any(axis=(1, 2)).sum())
        exact = values.astype(np.float64)
        count = count + (~np.isnan(exact)).sum(axis=(0, 1))
        sums = sums + np.nansum(exact, axis=(0, 1))
        squares = squares + np.nansum(exact**2, axis=(0, 1))
    if not count.all():
        raise TokenStoreError(f"{store.root}: {name} is known of no window of {TRAIN}.")
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)  # What never changes.
    with user_errors():
        state = StateShape(
            name=name,
            width=len(mean),
            frames=_frames_each(store, name),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
        )
    return state, missing


def _kinds(store: TokenStore, name: str) -> tuple[StateShape, int, str]:
    """Finds the largest of numbers that count kinds; counts windows in which one is not known.

    And lists kinds below the largest that no window has.
    """
    found, width, missing = set[int](), 1, 0
    for values in _parts(store, TRAIN, name):
        known = values[~np.isnan(values)]
        wrong = known[(known != known.round()) | (known < 0) | (known >= MAX_STATES)]
        if len(wrong):
            raise ConfigError(
                f"model.conditions: {name} is {wrong[0]:g} in {store.root}, which counts no kind "
                f"0, 1, …; leave out :{INTEGERS}."
            )
        found.update(np.unique(known).astype(int).tolist())
        width = values.shape[2]
        missing += int(np.isnan(values).any(axis=(1, 2)).sum())
    if not found:
        raise TokenStoreError(f"{store.root}: {name} is known of no window of {TRAIN}.")
    unseen = listed([str(kind) for kind in range(max(found)) if kind not in found])
    with user_errors():
        frames = _frames_each(store, name)
        state = StateShape(name=name, width=width, frames=frames, kinds=max(found) + 1)
    return state, missing, unseen


def _frames_each(store: TokenStore, name: str) -> int:
    """Returns of how many frames the store has numbers for each latent frame."""
    states = States.of(store.info)
    assert states is not None
    latent, first = store.grid[0], int(store.info.causal)
    if states.frames == latent:
        return 1
    each, left = divmod(states.frames - first, max(1, latent - first))
    if left or not each:
        raise TokenStoreError(
            f"{store.root} has {name} of {states.frames} frames of each window, which do not go "
            f"into {latent} latent frames."
        )
    return each


class StoreConditions:
    """Reads what a model is given of windows of one split.

    Labels and kinds that the model does not know are unknown to it if that is `allowed`. Raises
    TokenStoreError if the store lacks a condition, or has such a label; when it reads, too, if
    numbers do not fit.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        model: MeBTConfig,
        *,
        kept_shards: int = 1,
        allowed: bool = False,
    ) -> None:
        names = model.condition_names
        self.reader = ConditionReader(store, split, names, kept_shards=kept_shards)
        self.store, self.model, self.allowed = store, model, allowed
        self.foreign: list[str] = []
        """Labels of the split that the model does not know."""
        if LABEL not in names:
            return
        used = store.plan(split)[LABEL_COLUMN].unique().to_pylist()
        self.foreign = [name for name in used if name is not None and name not in model.labels]
        if self.foreign and not allowed:
            raise TokenStoreError(
                f"{store.root} has the label {self.foreign[0]!r}, which the model does not know; "
                f"it knows {listed(model.labels)}."
            )
        place_of = {name: place for place, name in enumerate(model.labels)}
        # Behind the last, where -1 finds it: unknown.
        places = [place_of.get(name, UNKNOWN) for name in store.label_names]
        self.places = np.array([*places, UNKNOWN], dtype=np.int64)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Conditions:
        """Returns the conditions of these rows, in this order."""
        found = self.reader.read(rows)
        labels = None if found.labels is None else torch.from_numpy(self.places[found.labels])
        if not self.model.states:
            return Conditions(labels)
        values = {name: torch.from_numpy(x) for name, x in found.states.items()}
        for state in self.model.states if self.allowed else ():
            if state.kinds and state.name in values:
                values[state.name][values[state.name] >= state.kinds] = torch.nan
        with user_errors():
            states = prepare_states(self.model.states, values, num_frames=self.model.grid[0])
        return Conditions(labels, states)


def listed(names: Sequence[str], most: int = 30) -> str:
    """Lists names, but not hundreds of them."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def without_conditions(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run's record says of its shape: of labels and states the store tells."""
    left = {key: value for key, value in record.items() if key not in ("labels", "states")}
    if not left["conditions"]:
        del left["conditions"]
    return left
