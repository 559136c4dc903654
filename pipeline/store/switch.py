"""A store that grew in a hidden folder of another takes that one's place."""

import contextlib
from collections.abc import Iterable, Iterator

from pipeline.frame_list import FRAMES
from pipeline.storage.bucket import Bucket
from pipeline.storage.places import Folder, Inside, Storage
from pipeline.store.layout import (
    INFO,
    MANIFEST,
    PLAN,
    StoreInfo,
    header_name,
    part_name,
    shard_name,
)
from pipeline.store.reader import TokenStore
from pipeline.store.states import STATES, states_name

GROWING, SWITCH = ".update-", ".switch"
"""Begins the name of a folder where a store grows; the file that says which is taking its place."""


def growing(files: Storage) -> list[str]:
    """Names the folders of a store where others grow."""
    return [name for name in files.names() if name.startswith(GROWING)]


def remove_growing(files: Storage) -> None:
    """Deletes what grew in a store and will not take its place."""
    for name in growing(files):
        files.remove(name)


def switch(files: Folder | Bucket, folder: str) -> None:
    """Lets the finished store in a folder of another take that one's place."""
    TokenStore(Inside(files, folder))  # It is whole, or this raises.
    files.write(SWITCH, folder.encode())
    finish_switch(files)


def finish_switch(files: Folder | Bucket) -> None:
    """Does what is left of a switch that was begun, if one was.

    From its first step to its last there is no store.json, so that nobody reads what is half the
    one and half the other.
    """
    try:
        folder = files.read(SWITCH).decode()
    except FileNotFoundError:
        return
    if INFO in files.names(folder):
        info = TokenStore(Inside(files, folder), allow_partial=True).info
        files.remove(INFO)
        wanted = list(_data_files(info))
        _remove_others(files, wanted)
        for name in (*wanted, INFO):
            with contextlib.suppress(FileNotFoundError):  # It was moved before.
                files.move(f"{folder}/{name}", name)
    remove_growing(files)
    files.remove(SWITCH)


def _data_files(info: StoreInfo) -> Iterator[str]:
    """Yields the name of every file of a store but store.json."""
    yield PLAN
    yield FRAMES
    for split in info.counts:
        yield header_name(split)
    for split, shard in info.shards():
        yield shard_name(split, shard)
        yield f"{MANIFEST}/{part_name(split, shard)}"
        if STATES in info.extra:
            yield states_name(split, shard)


def _remove_others(files: Folder | Bucket, wanted: Iterable[str]) -> None:
    """Deletes what no store with these files holds, as far as stores ever hold it."""
    kept = set(wanted)
    for name in files.names():
        if name.endswith(".zarr"):
            for shard in files.names(f"{name}/c"):
                if f"{name}/c/{shard}/0/0/0" not in kept:
                    files.remove(f"{name}/c/{shard}")
            if f"{name}/zarr.json" not in kept:
                files.remove(name)
    for folder in (MANIFEST, STATES):
        for name in files.names(folder):
            if f"{folder}/{name}" not in kept:
                files.remove(f"{folder}/{name}")
