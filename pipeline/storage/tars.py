"""WebDataset tars: samples of files that share a key. Written alike each time, read with suspicion.

The library `webdataset` writes them and says which files make a sample. Nothing is ever unpacked:
names only say what is what, and bytes are read where they lie.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import SEEK_END
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.errors import PipelineError
from pipeline.storage.files import printable, replacing
from pipeline.storage.places import Place, open_file, read_parts

if TYPE_CHECKING:  # It imports torch, which takes seconds: where no tar is used, it is not loaded.
    from webdataset import TarWriter

RESERVED = re.compile(r"__\w+__", re.ASCII)
"""Extensions by which webdataset keeps what it knows of a sample."""
KEYLESS = re.compile(r"\.[A-Za-z0-9]{1,9}")
"""A name that is an extension and nothing else; other names that begin so are hidden files."""
TEXTS = (".json", ".txt", ".cls")
MAX_TEXT_BYTES = 1 << 26
"""Bytes of a .json or .npy beyond which it is not read."""
MAX_HEADER_BYTES = 1 << 16
"""Bytes of all that says what one member is: name, times, attributes."""


@dataclass(frozen=True)
class Member:
    """One file inside a tar: where its bytes are."""

    tar: str
    """Its path, or URL."""
    name: str
    offset: int
    size: int
    text: bytes | None = field(default=None, repr=False, compare=False)
    """Of a text of few bytes, these: read as the tar is looked through."""

    def __str__(self) -> str:
        return f"{self.tar}: {printable(self.name[:200])}"

    def read(self) -> bytes:
        """Returns its bytes; see `pipeline.storage.places.read_parts`."""
        (data,) = read_members([self])
        return data

    def read_text(self, error: type[PipelineError]) -> bytes:
        """Returns the bytes of a text, which must be few. Raises `error` if they are not."""
        if self.text is None:
            raise error(f"{self} claims {self.size:,} bytes, too many for such a file.")
        return self.text


def read_members(members: Sequence[Member]) -> list[bytes]:
    """Returns the bytes of members of one tar; see `pipeline.storage.places.read_parts`."""
    return read_parts(members[0].tar, [(member.offset, member.size) for member in members])


class _Headers:
    """A tar as `tarfile` reads it: whatever a header claims, few bytes for each member."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header claims more than {MAX_HEADER_BYTES:,} bytes")
        self.left -= size
        return self.file.read(size)


@contextmanager
def new_tar(path: Path) -> Iterator["TarWriter"]:
    """Yields a tar to fill, which takes its place whole at the end.

    Of no time and no owner, so that the same makes the same.
    """
    from webdataset import TarWriter

    with replacing(path) as temporary, temporary.open("wb") as file:
        nobody: dict[str, Any] = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
        with TarWriter(file, encoder=False, **nobody) as tar:
            yield tar


def add(tar: "TarWriter", key: str, extension: str, data: bytes) -> None:
    """Adds a file to the sample of a key: one at a time, so that they keep their order."""
    tar.write({"__key__": key, extension: data})


def read_samples(
    path: Place, error: type[PipelineError], *, keyless: list[Member] | None = None
) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yields the samples of a tar, each with its key and its members by extension, in their order.

    Folders and hidden files are left out, a file without an extension has that of no letter. Those
    that are called as an extension alone, `.mp4`, are added to `keyless`. Raises
    `error`, naming tar and member, for what no sample can hold: links, devices, names that lead
    elsewhere, members of one name, bytes beyond the end.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    last: Member | None = None

    def named() -> Iterator[dict[str, Any]]:
        nonlocal last
        for member in _members(path, error):
            last, name = member, member.name
            if KEYLESS.fullmatch(PurePosixPath(name).name):
                if keyless is not None:
                    keyless.append(member)
                continue
            if RESERVED.fullmatch(name.rpartition(".")[2]):
                raise error(f"{member} has an extension that webdataset keeps for itself; refused.")
            if base_plus_ext(name)[0] is None:
                name += "."
            yield {"fname": name, "data": member, "__url__": member.tar}

    try:
        for sample in group_by_keys(named()):
            members = {kind: part for kind, part in sample.items() if isinstance(part, Member)}
            yield sample["__key__"], members
    except ValueError as problem:
        if "duplicate file name" not in str(problem):
            raise
        raise error(f"{last} is there twice; refused.") from None


def _members(path: Place, error: type[PipelineError]) -> Iterator[Member]:
    try:
        with open_file(path) as file:
            end = file.seek(0, SEEK_END)
            file.seek(0)
            position = -1
            headers = _Headers(file)
            with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as tar:
                for entry in tar:
                    headers.left = MAX_HEADER_BYTES
                    vars(tar).update(members=[], pax_headers={})  # They would keep all headers.
                    name = PurePosixPath(entry.name).name
                    if entry.isdir() or (name.startswith(".") and not KEYLESS.fullmatch(name)):
                        continue
                    _check(entry, position, end, path, error)
                    position = entry.offset_data
                    yield Member(str(path), entry.name, position, entry.size, _text(file, entry))
                # Python takes a header that it cannot read for the end.
                file.seek(tar.offset)
                if not (end_block := file.read(tarfile.BLOCKSIZE)) or any(end_block):
                    raise tarfile.ReadError(f"it breaks off after {tar.offset:,} bytes")
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
        raise error(f"{shown} is no plain file, but a link or worse; refused.")
    if {"..", ""} & set(entry.name.split("/")) or "\0" in entry.name:
        raise error(f"{shown} leads out of the tar; refused.")
    if not after < entry.offset_data <= entry.offset_data + entry.size <= end:
        raise error(f"{shown} claims bytes that the tar does not have; refused.")


def _text(file: BinaryIO, entry: tarfile.TarInfo) -> bytes | None:
    if not entry.name.lower().endswith(TEXTS) or entry.size > MAX_TEXT_BYTES:
        return None
    file.seek(entry.offset_data)
    return file.read(entry.size)
