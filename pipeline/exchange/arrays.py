"""Arrays in files of others, read a piece at a time: `.npy`, `.safetensors`, raw bytes.

What a header claims is believed once the file's size agrees. Nothing is ever unpickled.
"""

import math
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.storage.files import parse_json, printable

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
"""How an .npy begins; and an .npz, which is refused as an archive."""
BAD_HEADER = (
    *(ValueError, TypeError, SyntaxError, EOFError, MemoryError, RecursionError),
    tokenize.TokenError,
)
"""What numpy raises at headers that are none."""
LENGTHS = {(1, 0): 2, (2, 0): 4}
"""Bytes that say how long the header of an .npy is, by version."""
SHOWN = 100
"""Bytes of a header that make no sense, in messages."""
MAX_HEADER = 1 << 20
"""Bytes of the header of a .safetensors beyond which it is not read."""
TENSORS = {f"{sign.upper()}{8 * size}": f"<{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)}
"""Integers, as a .safetensors calls them, as numpy does."""
MAX_LENGTH = (1 << 31) - 1
"""Rows of an array that a plan can count."""


@dataclass(frozen=True)
class FileArray:
    """An array that lies in a file; nothing of it is held in memory."""

    file: Path
    name: str
    """The file, or a tar and its member, for messages."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0
    """Its first byte in the file."""
    fortran: bool = False
    """Whether the first axis is the one whose neighbours lie side by side."""

    def __str__(self) -> str:
        return self.name

    @property
    def what(self) -> str:
        """Says type and shape, for messages."""
        return f"{self.dtype} {list(self.shape)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of what one index of the first axis holds."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Returns the rows from `start` to before `stop`. Raises PipelineError if they are gone."""
        try:
            if self.fortran:
                mapped = np.memmap(
                    self.file, self.dtype, "r", self.offset, shape=self.shape, order="F"
                )
                return np.array(mapped[start:stop])
            count, begin = (stop - start) * math.prod(self.shape[1:]), start * self.row_bytes
            rows = np.fromfile(self.file, self.dtype, count, offset=self.offset + begin)
            return rows.reshape(stop - start, *self.shape[1:])
        except ValueError:
            raise PipelineError(f"{self} became shorter while it was read.") from None


def open_npy(path: Path, *, name: str = "", span: tuple[int, int] | None = None) -> FileArray:
    """Opens an .npy: a file, or a part of one (first byte, bytes) that messages call `name`.

    Raises PipelineError, naming it, if it is none, is cut off, or holds Python objects.
    """
    name = name or printable(str(path))
    start, size = span or (0, path.stat().st_size)
    with path.open("rb") as file:
        file.seek(start)
        if file.read(len(ZIP)) == ZIP:
            raise PipelineError(f"{name} is an archive of arrays; save the one of ids as an .npy.")
        file.seek(start)
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            else:
                header = np.lib.format.read_array_header_2_0(file)
        except BAD_HEADER:
            said = _fault(file, start, size)
            raise PipelineError(f"{name} is no .npy of numbers: {said}.") from None
        begin = file.tell()
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise PipelineError(
            f"{name} is no .npy of numbers: it holds Python objects, which are never unpickled."
        )
    array = FileArray(path, name, dtype, shape, begin, fortran and len(shape) > 1)
    return _as_claimed(array, size - (begin - start))


def _fault(file: BinaryIO, start: int, size: int) -> str:
    """Says what is wrong with the header of an .npy; numpy speaks of Python's grammar."""
    file.seek(start)
    begin = file.read(len(NPY) + 6)
    if not begin.startswith(NPY):
        return "it does not begin as one"
    major, minor = begin[len(NPY) : len(NPY) + 2].ljust(2, b"\0")
    if (major, minor) not in LENGTHS:
        return f"its format is {major}.{minor}, but 1.0 and 2.0 are read"
    first = len(NPY) + 2 + LENGTHS[major, minor]
    length = int.from_bytes(begin[len(NPY) + 2 : first], "little")
    if first + length > size:
        return f"it breaks off in its header of {length:,} bytes"
    file.seek(start + first)
    text = printable(file.read(min(length, SHOWN)).decode("latin-1").strip())
    return f"its header is no plain type and shape: {text or 'nothing'}"


def open_safetensors(path: Path) -> FileArray:
    """Opens a .safetensors that holds one tensor of integers. Raises PipelineError otherwise."""
    name, size = printable(str(path)), path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise PipelineError(f"{name} is no .safetensors: its header claims {length:,} bytes.")
        header = parse_json(file.read(length), name, PipelineError, ".safetensors")
    header.pop("__metadata__", None)
    if len(header) != 1:
        raise PipelineError(f"{name} holds {len(header)} tensors, not one, the ids of a video.")
    (about,) = header.values()
    about = about if isinstance(about, dict) else {}
    kind, shape = about.get("dtype"), about.get("shape")
    dtype = TENSORS.get(kind) if isinstance(kind, str) else None
    is_shape = isinstance(shape, list) and all(type(n) is int for n in shape)
    if dtype is None or shape is None or not is_shape:
        raise PipelineError(f"{name} must hold integers, but holds {kind!r} {shape!r}."[:300])
    held = size - 8 - length
    if about.get("data_offsets") != [0, held]:
        raise PipelineError(f"{name} does not hold the {held:,} bytes that its header claims.")
    return _as_claimed(FileArray(path, name, np.dtype(dtype), tuple(shape), 8 + length), held)


def open_raw(path: Path, dtype: str, shape: tuple[int, ...], said: str) -> FileArray:
    """Opens a file of nothing but numbers, in little-endian; `said` is who claims its shape.

    Raises PipelineError if it is missing, or its bytes are more or fewer than that makes.
    """
    array = FileArray(path, printable(str(path)), np.dtype(dtype).newbyteorder("<"), shape)
    if not path.is_file():
        raise PipelineError(f"{array} is missing.")
    held, claimed = path.stat().st_size, shape[0] * array.row_bytes
    if held != claimed:
        raise PipelineError(
            f"{array} holds {held:,} bytes, but {said} makes them {claimed:,}: {array.what}."
        )
    return array


def _as_claimed(array: FileArray, held: int) -> FileArray:
    """Returns an array if as many bytes are there as its shape makes."""
    if not array.shape or min(array.shape) < 0 or max(array.shape) > MAX_LENGTH:
        raise PipelineError(f"{array} claims an impossible shape: {list(array.shape)}."[:300])
    claimed = math.prod(array.shape) * array.dtype.itemsize
    if held != claimed:
        state = "is cut off" if held < claimed else "holds more than an array"
        raise PipelineError(
            f"{array} {state}: its header claims {array.what}, {claimed:,} bytes, but {held:,} "
            "follow."
        )
    return array
