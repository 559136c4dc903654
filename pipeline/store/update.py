"""A token store brought to what its frames are now; what is the same is taken over, not encoded.

Where frames of the same names changed, shards of unchanged windows stay in their place. Where the
plan is another, the new store grows in a hidden folder of the old one and then takes its place.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import as_dict
from pipeline.errors import TokenStoreError
from pipeline.frame_list import by_video, difference
from pipeline.storage.bucket import Bucket
from pipeline.storage.places import Folder, Inside, Storage
from pipeline.store.layout import (
    MANIFEST,
    TEXTS,
    StoreInfo,
    hash_plan,
    part_name,
    read_part,
    store_fingerprint,
    write_part,
)
from pipeline.store.reader import TokenStore, read_rows
from pipeline.store.states import STATES, STATES_HASH
from pipeline.store.switch import GROWING, finish_switch, growing, remove_growing
from pipeline.store.tables import texts_of
from pipeline.store.writer import StoreWriter, committed_fingerprints, create_store, describe_store

FROM_FRAMES = {"source", "counts", "fps", "extra"}
"""What a store says of its frames: all else must be the same for tokens to be taken over."""
OF_STATES = {STATES, STATES_HASH}
"""What of `extra` may be another, too: tokens do not depend on states, nor on texts."""

Shard = tuple[str, int]


@dataclass(frozen=True)
class Work:
    """What a run has to do to a store."""

    missing: list[Shard]
    folder: str = ""
    """Where in the store the one grows that will take its place; empty: in its own place."""
    taken: list[tuple[str, list[Shard]]] = field(default_factory=list)
    """Folders in the store, as above, and whole shards there, to take tokens from."""
    kept: int = 0
    """Windows that were there and stay, of a store whose frames have changed."""
    said: str = ""
    """How the frames differ from what they were; empty: they do not."""


def prepare_store(
    files: Folder | Bucket,
    info: StoreInfo,
    plan: pa.Table,
    *,
    source: pa.Table | None,
    overwrite: bool = False,
    update: bool = False,
) -> Work:
    """Makes or opens a store as `create_store` does; says what is left to do.

    An unfinished store whose frames changed, but for their names, goes on with what is the same. A
    finished one, or one of other videos, is only touched if `update` says so. Raises
    TokenStoreError, naming what differs, if it may not be, and as `create_store` does.
    """
    finish_switch(files)
    store = None if source is None else _of_other_frames(files, info, plan)
    if store and committed_fingerprints(files) == {store_fingerprint(info, hash_plan(plan))}:
        describe_store(files, info, plan, source)  # A kill came just before this.
        store = None
    if store is None or source is None:
        writer = create_store(files, info, plan, source=source, overwrite=overwrite)
        remove_growing(files)
        return Work(writer.unfinished())
    missing, total = store.missing(), sum(1 for _ in store.info.shards())
    same_plan = store.plan_hash == hash_plan(plan)
    before, said = _listed(store), ""
    if before is not None:
        said = _changed(store, before, info, plan, source)
        same_states = OF_STATES.isdisjoint(_differing(store.info.extra, info.extra))
        if same_plan and same_states and (update or missing):
            return _go_on_in_place(store, info, plan, source, said)
        if update:
            return _grow_beside(files, store, info, plan, source, said)
    if not overwrite and len(missing) < total:
        raise TokenStoreError(_refusal(store, info, said))
    return Work(create_store(files, info, plan, source=source, overwrite=True).unfinished())


def _refusal(store: TokenStore, info: StoreInfo, said: str) -> str:
    if not said:
        return (
            f"{store.root} was made from other frames, and does not list them: an earlier version "
            "made it, or its list is damaged. None of it can be taken over: choose another --out, "
            "or give --overwrite to encode all anew."
        )
    finished = "" if store.missing() else "It is finished, and experiments may be reading it. "
    same_frames = store.info.source == info.source
    other = "labels, captions or states" if same_frames else "frames"
    return (
        f"{store.root} was made from other {other}: {said}. {finished}Give --update to bring it to "
        "what they are now, which encodes only what is new, or choose another --out."
    )


def _changed(
    store: TokenStore, before: pa.Table, info: StoreInfo, plan: pa.Table, source: pa.Table
) -> str:
    """Says how frames, labels, captions and states differ from those of a store."""
    parts = [str(difference(before, source))] if store.info.source != info.source else []
    with contextlib.suppress(TokenStoreError):  # A damaged plan is written anew.
        for name in TEXTS:
            theirs, ours = (texts_of(table, name) for table in (store.plan(), plan))
            count = sum(theirs.get(key, text) != text for key, text in ours.items())
            parts += [f"the {name}s of {count:,} of the videos differ"] if count else []
    if not parts or not {STATES}.isdisjoint(_differing(store.info.extra, info.extra)):
        parts.append("the states differ")
    return "; ".join(parts)


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> set[str]:
    return {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}


def _of_other_frames(files: Storage, info: StoreInfo, plan: pa.Table) -> TokenStore | None:
    """Opens the store that differs from the one wanted in frames, texts and states alone."""
    try:
        store = TokenStore(files, allow_partial=True)
    except TokenStoreError:
        return None
    same = _settings(store.info) == _settings(info)
    other = store.fingerprint != store_fingerprint(info, hash_plan(plan))
    return store if same and other else None


def _settings(info: StoreInfo) -> dict[str, Any]:
    settings = {key: value for key, value in as_dict(info).items() if key not in FROM_FRAMES}
    return settings | {"extra": {k: v for k, v in info.extra.items() if k not in OF_STATES}}


def _listed(store: TokenStore) -> pa.Table | None:
    """Returns which frames a store was made from, if it says so and that is not damaged."""
    try:
        return store.made_from
    except TokenStoreError:
        return None


def _go_on_in_place(
    store: TokenStore, info: StoreInfo, plan: pa.Table, source: pa.Table, said: str
) -> Work:
    """Withdraws what commits shards with changed frames, and lets the others be of the new store.

    A kill leaves shards of both; run again, those of the new one are known by their fingerprint.
    """
    files, wanted = store.files, store_fingerprint(info, store.plan_hash)
    same = {split: same_rows(store, store.plan(split), source, split) >= 0 for split in info.counts}
    kept = []
    for split, shard in set(info.shards()) - set(store.missing()):
        try:
            part = read_part(files, part_name(split, shard))
            if part["fingerprint"] != wanted:
                store.check_shard(split, shard)
                if not same[split][slice(*info.shard_rows(split, shard))].all():
                    raise TokenStoreError("holds frames that changed")
                kept.append(part)
        except TokenStoreError:
            files.remove(f"{MANIFEST}/{part_name(split, shard)}")
    for part in kept:
        write_part(files, {**part, "fingerprint": wanted})
    describe_store(files, info, plan, source)
    missing = StoreWriter(files).unfinished()
    left = sum(len(range(*info.shard_rows(*shard))) for shard in missing)
    return Work(missing, kept=sum(info.counts.values()) - left, said=said)


def _grow_beside(
    files: Folder | Bucket,
    store: TokenStore,
    info: StoreInfo,
    plan: pa.Table,
    source: pa.Table,
    said: str,
) -> Work:
    """Makes or opens the store that will take the place of `store`.

    Tokens are taken from that one, and from what grew for frames that have changed once more.
    """
    folder = GROWING + store_fingerprint(info, hash_plan(plan))[:16]
    missing = create_store(Inside(files, folder), info, plan, source=source).unfinished()
    stores = {"": store}
    for name in growing(files):
        with contextlib.suppress(TokenStoreError):
            other = TokenStore(Inside(files, name), allow_partial=True)
            if name != folder and _settings(other.info) == _settings(info):
                stores[name] = other
    whole = {name: _whole_shards(other) for name, other in stores.items() if missing}
    return Work(missing, folder, list(whole.items()), said=said)


def _whole_shards(store: TokenStore) -> list[Shard]:
    missing = set(store.missing())
    if _listed(store) is None:
        return []
    whole = []
    for shard in store.info.shards():
        with contextlib.suppress(TokenStoreError):
            if shard not in missing:
                store.check_shard(*shard)
                whole.append(shard)
    return whole


def _windows(plan: pa.Table) -> dict[str, tuple[int, NDArray[np.int64]]]:
    """Returns the first row, and first frames of all windows, of each video of one split."""
    videos = plan["video"].to_numpy(zero_copy_only=False)
    firsts = plan["first_frame"].to_numpy().astype(np.int64)
    begins = np.flatnonzero(np.append(True, videos[1:] != videos[:-1]))
    ends = np.append(begins[1:], len(videos))
    return {videos[b]: (int(b), firsts[b:e]) for b, e in zip(begins, ends, strict=True)}


def same_rows(store: TokenStore, plan: pa.Table, source: pa.Table, split: str) -> NDArray[np.int64]:
    """Finds the windows of another plan of a split whose frames `store` was made from, too.

    Returns the row of `store` that each is, or -1. `source` lists the frames of that plan.
    """
    info, rows = store.info, np.full(len(plan), -1)
    assert info.frames and info.stride, "tokens made from frames know their window"
    assert store.made_from is not None
    if split not in info.counts:
        return rows
    offsets = np.arange(info.frames) * info.stride
    before, now = dict(by_video(store.made_from)), dict(by_video(source))
    held = _windows(store.plan(split))
    for video, (start, firsts) in _windows(plan).items():
        if video not in held:
            continue
        old_start, old_firsts = held[video]
        ours, theirs = now[split, video], before[split, video]
        same = np.zeros(len(ours), bool)
        same[: len(theirs)] = [a == b for a, b in zip(ours, theirs, strict=False)]
        place = np.searchsorted(old_firsts, firsts).clip(max=len(old_firsts) - 1)
        there = (old_firsts[place] == firsts) & same[firsts[:, None] + offsets].all(1)
        rows[start : start + len(firsts)] = np.where(there, old_start + place, -1)
    return rows


class Known:
    """Tokens of windows of one store that others hold already."""

    def __init__(
        self, store: TokenStore, others: Sequence[tuple[TokenStore, Collection[Shard]]]
    ) -> None:
        self.stores = [other for other, _ in others]
        assert store.made_from is not None
        self.origins: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        """Of each split: which of the stores holds each row, or -1; and in which row."""
        for split in store.splits:
            which = np.full(store.num_windows(split), -1)
            rows = which.copy()
            for number, (other, shards) in enumerate(others):
                theirs = same_rows(other, store.plan(split), store.made_from, split)
                whole = [shard for name, shard in shards if name == split]
                new = (which < 0) & (theirs >= 0)
                new &= np.isin(theirs // other.info.shard_windows, whole)
                which[new], rows[new] = number, theirs[new]
            self.origins[split] = which, rows

    def has(self, split: str, start: int, stop: int) -> NDArray[np.bool_]:
        """Says which rows of a split are known."""
        return self.origins[split][0][start:stop] >= 0

    def read(self, split: str, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the tokens [n, t, h, w] of rows; of those that are not known, anything.

        Raises TokenStoreError if a shard was damaged since it was looked at.
        """
        which, rows = (column[start:stop] for column in self.origins[split])
        tokens = np.zeros((stop - start, *self.stores[0].grid), np.int64)
        for number, store in enumerate(self.stores):
            if (mine := which == number).any():
                tokens[mine] = read_rows(store, split, rows[mine].tolist())
        return tokens
