"""What windows of a store are conditioned on: their labels, and numbers of each of their frames."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import TokenStoreError
from pipeline.store.layout import LABEL
from pipeline.store.reader import TokenStore
from pipeline.store.states import States

UNKNOWN = -1
"""The label of a window of which none is known; a number that is not known is NaN."""


@dataclass(frozen=True)
class WindowConditions:
    """Of some windows."""

    labels: NDArray[np.int64] | None
    """Places in `TokenStore.label_names`, or `UNKNOWN`, [n]; None: not asked for."""
    states: dict[str, NDArray[np.float32]]
    """By name [n, frames, width]; `States.frames` says whether frames are latent ones."""


class ConditionReader:
    """Reads conditions of windows of one split, of rows in any order.

    `names` are of states, or `label`. The numbers of the last `kept_shards` shards stay in memory;
    of training, give `Batches.kept_shards`. Raises TokenStoreError for a name that the store does
    not know, and, when it reads, if it is damaged.
    """

    def __init__(
        self, store: TokenStore, split: str, names: Sequence[str], *, kept_shards: int = 1
    ) -> None:
        if unknown := [name for name in names if name not in (known := condition_names(store))]:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TokenStoreError(f"{store.root} has no condition {unknown[0]!r}; {has}.")
        self.store, self.split, self.kept_shards = store, split, kept_shards
        self.states = States.of(store.info)
        self.state_names = [name for name in names if name != LABEL]
        self._labels = _places(store, split) if LABEL in names else None
        self._shards: OrderedDict[int, dict[str, NDArray[np.float32]]] = OrderedDict()

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> WindowConditions:
        """Returns the conditions of these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        labels = None if self._labels is None else self._labels[rows]
        if self.states is None or not self.state_names:
            return WindowConditions(labels, {})
        states = {
            name: np.empty((len(rows), self.states.frames, self.states.widths[name]), np.float32)
            for name in self.state_names
        }
        shards, places = np.divmod(rows, self.store.info.shard_windows)
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            for name, values in self._shard(shard).items():
                states[name][mine] = values[places[mine]]
        return WindowConditions(labels, states)

    def _shard(self, shard: int) -> dict[str, NDArray[np.float32]]:
        if shard in self._shards:
            self._shards.move_to_end(shard)
        else:
            table = self.store.states(self.split, shard)
            assert self.states is not None
            self._shards[shard] = {
                name: self.states.values(table, name) for name in self.state_names
            }
            if len(self._shards) > self.kept_shards:
                self._shards.popitem(last=False)
        return self._shards[shard]


def condition_names(store: TokenStore) -> list[str]:
    """Names what windows of a store can be conditioned on: `label`, then its states."""
    states = States.of(store.info)
    others = [name for name in (states.widths if states else ()) if name != LABEL]
    return [LABEL, *others] if store.label_names else others


def _places(store: TokenStore, split: str) -> NDArray[np.int64]:
    """Returns the place of each window's label in `label_names` [n]."""
    found = pc.index_in(store.plan(split)[LABEL], pa.array(store.label_names, pa.string()))
    places: NDArray[np.int64] = pc.fill_null(found, UNKNOWN).to_numpy().astype(np.int64)
    return places
