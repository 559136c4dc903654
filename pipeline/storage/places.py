"""Where token stores and frame tars lie: a folder, or a prefix of an S3 bucket."""

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, overload

from pipeline.errors import TokenStoreError
from pipeline.storage.bucket import REMOTE, Bucket
from pipeline.storage.files import (
    contents,
    describe_link,
    lock,
    make_folder,
    remove,
    sync_folder,
    write_bytes,
)

Place = Path | str
"""A folder or file of this machine, or `s3://bucket/prefix`."""


class Folder:
    """Files below a folder. A write is whole and on the disk, or it did not happen."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, *names: str) -> Path:
        """Returns where a file lies. Raises TokenStoreError if that leads out of the folder."""
        path = self.root.joinpath(*names)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise TokenStoreError(describe_link(path, "the store"))
        return path

    def read(self, name: str) -> bytes:
        """Returns a whole file. Raises FileNotFoundError if there is none."""
        path = self.place(name)
        if path.exists() and not path.is_file():
            raise FileNotFoundError(f"{path} is no file.")
        return path.read_bytes()

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of all files below the folder, by name; follows no link."""
        return {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for folder, _, names in os.walk(self.root)
            for path in (Path(folder, name) for name in names)
            if path.is_file() and not path.is_symlink()
        }

    def open(self, name: str) -> BinaryIO:
        """Opens a file to be read. Raises FileNotFoundError if there is none."""
        return self.place(name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, or leaves the old one untouched."""
        write_bytes(self.place(name), data)

    def names(self, folder: str = "") -> list[str]:
        """Lists what the folder holds, apart from its lock and what a kill left half-written."""
        path = self.root / folder
        return [file.name for file in contents(path)] if path.is_dir() else []

    def remove(self, name: str) -> None:
        """Deletes a file or folder; does nothing if there is none."""
        remove(self.root / name)

    def move(self, name: str, target: str) -> None:
        """Lets a file take another's place. Raises FileNotFoundError if there is none."""
        source, path = self.place(name), self.place(target)
        make_folder(path.parent)
        source.replace(path)
        sync_folder(path.parent)

    def lock(self, *, shared: bool = False) -> AbstractContextManager[Callable[[], None]]:
        """Keeps other runs from writing; see `pipeline.storage.files.lock`."""
        return lock(self.root, shared=shared)


class Inside:
    """Files below a folder of a `Folder` or `Bucket`, whose lock guards them too."""

    def __init__(self, outer: Folder | Bucket, folder: str) -> None:
        self.outer, self.folder = outer, folder
        self.root = outer.place(folder)

    def place(self, *names: str) -> Place:
        """Returns where a file lies."""
        return self.outer.place(self.folder, *names)

    def read(self, name: str) -> bytes:
        """Returns a whole file. Raises FileNotFoundError if there is none."""
        return self.outer.read(f"{self.folder}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, or leaves the old one untouched."""
        self.outer.write(f"{self.folder}/{name}", data)

    def names(self, folder: str = "") -> list[str]:
        """Lists what the folder holds."""
        return self.outer.names(f"{self.folder}/{folder}".rstrip("/"))

    def remove(self, name: str) -> None:
        """Deletes a file or folder; does nothing if there is none."""
        self.outer.remove(f"{self.folder}/{name}")


Storage = Folder | Bucket | Inside


def is_remote(place: object) -> bool:
    """Says whether a place is a bucket."""
    return isinstance(place, str) and place.startswith(REMOTE)


@overload
def open_storage(place: Place | Folder | Bucket) -> Folder | Bucket: ...
@overload
def open_storage(place: Place | Storage) -> Storage: ...
def open_storage(place: Place | Storage) -> Storage:
    """Opens a folder or a bucket. Raises StorageError if a bucket cannot be."""
    if isinstance(place, Folder | Bucket | Inside):
        return place
    return Bucket(str(place)) if is_remote(place) else Folder(Path(place))


def open_file(place: Place) -> BinaryIO:
    """Opens a file, or an object of a bucket, to be read from any place in it.

    Raises FileNotFoundError if there is none.
    """
    if not is_remote(place):
        return Path(place).open("rb")
    bucket, name = _object(str(place))
    return bucket.open(name)


def read_parts(place: Place, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns parts (first byte, bytes) of a file or an object.

    Of a file that is shorter there is less; for an object see `Bucket.read_parts`.
    """
    if is_remote(place):
        bucket, name = _object(str(place))
        return bucket.read_parts(name, spans)
    parts = []
    with Path(place).open("rb") as file:
        for start, length in spans:
            file.seek(start)
            parts.append(file.read(length))
    return parts


def object_stamp(url: str) -> list[Any]:
    """Returns what changes with an object of a bucket; see `Bucket.stamp`."""
    bucket, name = _object(url)
    return bucket.stamp(name)


def _object(url: str) -> tuple[Bucket, str]:
    prefix, _, name = url.rpartition("/")
    return _bucket(prefix), name


_bucket = functools.lru_cache(64)(Bucket)
"""Buckets that were opened last, so that not every read connects anew."""
