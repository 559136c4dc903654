"""WebDataset tars: samples of files that share a key. Written alike each time, read with suspicion.

Nothing is ever unpacked: names only say what is what, and bytes are read where they lie.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import PipelineError
from pipeline.storage.files import printable, replacing
from pipeline.storage.places import Place, open_file, read_parts

NAME = re.compile(r"([\w-]+)\.([\w.]+)", re.ASCII)
"""A key and an extension. WebDataset cuts at the first dot, so a key has none."""
MAX_TEXT_BYTES = 1 << 26
"""Bytes of a .json or .npy beyond which it is not read."""


@dataclass(frozen=True)
class Member:
    """One file inside a tar: where its bytes are."""

    tar: str
    """Its path, or URL."""
    name: str
    offset: int
    size: int
    text: bytes | None = field(default=None, repr=False, compare=False)
    """Of a .json of few bytes, these: read as the tar is looked through."""

    def __str__(self) -> str:
        return f"{self.tar}: {printable(self.name[:200])}"

    def read(self) -> bytes:
        """Returns its bytes; see `pipeline.storage.places.read_parts`."""
        (data,) = read_members([self])
        return data

    def read_text(self, error: type[PipelineError]) -> bytes:
        """Returns the bytes of a .json, which must be few. Raises `error` if they are not."""
        if self.text is None:
            raise error(f"{self} claims {self.size:,} bytes, too many for such a file.")
        return self.text


def read_members(members: Sequence[Member]) -> list[bytes]:
    """Returns the bytes of members of one tar; see `pipeline.storage.places.read_parts`."""
    return read_parts(members[0].tar, [(member.offset, member.size) for member in members])


@contextmanager
def new_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Yields a tar to fill, which takes its place whole at the end."""
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        yield tar


def add(tar: tarfile.TarFile, name: str, data: bytes | Path) -> None:
    """Adds bytes, or a file, under a name: no time, no owner, so that the same makes the same."""
    entry = tarfile.TarInfo(name)
    if isinstance(data, Path):
        entry.size = data.stat().st_size
        with data.open("rb") as file:
            tar.addfile(entry, file)
    else:
        entry.size = len(data)
        tar.addfile(entry, BytesIO(data))


def read_samples(path: Place, error: type[PipelineError]) -> Iterator[dict[str, Member]]:
    """Yields the samples of a tar, each as its members by extension, in their order.

    Raises `error`, naming tar and member, for what no sample can hold: folders, links, devices,
    names that lead elsewhere, members of one name, bytes beyond the end.
    """
    sample: dict[str, Member] = {}
    last = None
    for member in _members(path, error):
        match = NAME.fullmatch(member.name)
        if not match:
            raise error(f"{member} is no name of a sample's file, such as 0001.png; refused.")
        key, extension = match.groups()
        if sample and key != last:
            yield sample
            sample = {}
        if extension in sample:
            raise error(f"{member} is there twice; refused.")
        sample[extension] = member
        last = key
    if sample:
        yield sample


def _members(path: Place, error: type[PipelineError]) -> Iterator[Member]:
    try:
        with open_file(path) as file:
            end = file.seek(0, SEEK_END)
            file.seek(0)
            position = -1
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for entry in tar:
                    _check(entry, position, end, path, error)
                    position = entry.offset_data
                    yield Member(str(path), entry.name, position, entry.size, _text(file, entry))
    except FileNotFoundError:
        raise error(f"{path} is missing.") from None
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as problem:
        said = str(problem).rstrip(".")
        raise error(f"{path} is damaged, or no uncompressed tar: {said}.") from None


def _check(
    entry: tarfile.TarInfo, after: int, end: int, path: Place, error: type[PipelineError]
) -> None:
    """Raises `error` unless an entry is a file whose bytes follow those of the one before."""
    shown = f"{path}: {entry.name[:200]!r}"
    if not entry.isreg() or entry.issparse():
        raise error(f"{shown} is no plain file, but a link, folder or worse; refused.")
    if not after < entry.offset_data <= entry.offset_data + entry.size <= end:
        raise error(f"{shown} claims bytes that the tar does not have; refused.")


def _text(file: BinaryIO, entry: tarfile.TarInfo) -> bytes | None:
    if not entry.name.endswith(".json") or entry.size > MAX_TEXT_BYTES:
        return None
    file.seek(entry.offset_data)
    return file.read(entry.size)
