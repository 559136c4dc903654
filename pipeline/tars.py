"""WebDataset tars: samples of files that share a key. Written alike each time, read with suspicion.

Nothing is ever unpacked: names only say what is what, and bytes are read where they lie.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.storage import Place, open_file, read_parts

NAME = re.compile(r"([\w-]+)\.([\w.]+)", re.ASCII)
"""A key and an extension. WebDataset cuts at the first dot, so a key has none."""
LARGEST_TEXT = 1 << 26
"""Bytes of a .json or .npy beyond which it is not read."""


@dataclass(frozen=True)
class Member:
    """One file inside a tar: where its bytes are."""

    tar: str
    """Its path, or URL."""
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"

    def read(self) -> bytes:
        """Returns its bytes; fewer if the tar has become shorter."""
        (data,) = read_members([self])
        return data

    def read_text(self, error: type[PipelineError]) -> bytes:
        """Returns its bytes, which must be few. Raises `error` if they are not."""
        if self.size > LARGEST_TEXT:
            raise error(f"{self} claims {self.size:,} bytes, too many for such a file.")
        return self.read()


def read_members(members: Sequence[Member]) -> list[bytes]:
    """Returns the bytes of members of one tar."""
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
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, SEEK_END)
            position = -1
            for entry in tar:
                shown = f"{path}: {entry.name[:200]!r}"
                if not entry.isreg() or entry.issparse():
                    raise error(f"{shown} is no plain file, but a link, folder or worse; refused.")
                if not position < entry.offset_data <= entry.offset_data + entry.size <= end:
                    raise error(f"{shown} claims bytes that the tar does not have; refused.")
                position = entry.offset_data
                yield Member(str(path), entry.name, entry.offset_data, entry.size)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as problem:
        said = str(problem).rstrip(".")
        raise error(f"{path} is damaged, or no uncompressed tar: {said}.") from None
