"""Arrays of others are read as they were meant, a piece at a time, or refused by name."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.errors import PipelineError
from pipeline.exchange.arrays import FileArray, open_npy, open_raw, open_safetensors
from tests.helpers.token_files import npy


def same(array: FileArray, wanted: NDArray) -> None:
    """All of it, and a piece of it, is what was written."""
    np.testing.assert_array_equal(array.read(0, len(wanted)), wanted)
    np.testing.assert_array_equal(array.read(2, 5), wanted[2:5])


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", ">i4", "|u1", "<i8", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_is_read_in_its_own_order(kind: str, order: str, tmp_path: Path) -> None:
    ids = np.arange(7 * 2 * 3 * 5).reshape(7, 2, 3, 5).astype(kind)
    np.save(tmp_path / "a.npy", np.asarray(ids, order=order))
    array = open_npy(tmp_path / "a.npy")
    same(array, ids)
    behind = tmp_path / "behind"
    behind.write_bytes(b"x" * 513 + (tmp_path / "a.npy").read_bytes() + b"yz")
    same(open_npy(behind, span=(513, behind.stat().st_size - 515)), ids)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_a_safetensors_is_read(kind: str, tmp_path: Path) -> None:
    ids = np.arange(7 * 3 * 5).reshape(7, 3, 5).astype(kind)
    save_file({"ids": ids}, tmp_path / "a.safetensors", {"made": "by somebody"})
    same(open_safetensors(tmp_path / "a.safetensors"), ids)


def test_raw_bytes_are_little_endian_on_every_machine(tmp_path: Path) -> None:
    ids = np.arange(7 * 3 * 5).reshape(7, 3, 5)
    ids.astype("<u4").tofile(tmp_path / "a.bin")
    same(open_raw(tmp_path / "a.bin", "uint32", (7, 3, 5), "somebody"), ids)


def header(text: str, behind: bytes = b"") -> bytes:
    """An .npy with any header."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + behind


GOOD = npy(np.zeros((3, 2, 2), np.uint16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-1], "is cut off: its header claims uint16 [3, 2, 2], 24 bytes, but 23 follow"),
        (GOOD[:40], "is no .npy of numbers: it breaks off in its header of 118 bytes."),
        (GOOD[:8], "is no .npy of numbers: it breaks off in its header of 0 bytes."),
        (b"no array", "is no .npy of numbers: it does not begin as one."),
        (GOOD + GOOD, "holds more than an array"),
        (npy(np.array([{}])), "holds Python objects, which are never unpickled"),
        (b"PK\3\4 and so on", "is an archive"),
        (b"\x93NUMPY\x09\0" + GOOD[8:], "its format is 9.0, but 1.0 and 2.0 are read."),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 2)}"), "impossible shape"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': ()}", b"ab"), "impossible sh"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (9**99,)}"), "is no .npy of"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (1 << 40,)}"), "is no .npy"),
        (header(f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({9**99},)}}"), "impossible"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (nan,)}"), "is no .npy of"),
        (header("{'descr': 'x\\ny', 'fortran_order': False, 'shape': (1,)}"), "is no .npy of"),
        (
            header("{[]: 1}"),
            "is no .npy of numbers: its header is no plain type and shape: {[]: 1}.",
        ),
        (header("(" * 9000), f"is no plain type and shape: {'(' * 100}."),
        (header("{'descr': '<u2'}"), "is no plain type and shape: {'descr': '<u2'}."),
        (header(" " * 20_000), "is no plain type and shape: nothing."),
        (header("\x1b[2Jexit()"), "is no plain type and shape: \\x1b[2Jexit()."),
    ],
)
def test_an_npy_that_is_none_is_one_clear_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(PipelineError) as error:
        open_npy(tmp_path / "a.npy")
    assert message in str(error.value)
    assert str(tmp_path / "a.npy") in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def tensors(header: object, behind: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + behind


ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header claims 0 bytes"),
        (tensors({"a": ONE}, b"abcd", length=1 << 60), "its header claims"),
        (tensors(b"{nonsense", b"abcd"), "is not the JSON of a .safetensors"),
        (tensors({}, b"abcd"), "holds 0 tensors, not one"),
        (tensors({"a": ONE, "b": ONE}, b"abcd"), "holds 2 tensors, not one"),
        (tensors({"a": 5}, b"abcd"), "must hold integers"),
        (tensors({"a": ONE | {"dtype": "F32"}}, b"abcd"), "must hold integers, but holds 'F32'"),
        (tensors({"a": ONE | {"dtype": [1]}}, b"abcd"), "must hold integers"),
        (tensors({"a": ONE | {"shape": [4.0]}}, b"abcd"), "must hold integers"),
        (tensors({"a": ONE | {"shape": [-2, -2]}}, b"abcd"), "impossible shape"),
        (tensors({"a": ONE | {"shape": []}}, b"abcd"), "impossible shape"),
        (tensors({"a": ONE | {"shape": [5]}}, b"abcd"), "is cut off"),
        (tensors({"a": ONE | {"shape": [3]}}, b"abcd"), "holds more than an array"),
        (tensors({"a": ONE}, b"abc"), "does not hold the 3 bytes"),
        (tensors({"a": ONE | {"data_offsets": [-4, 4]}}, b"abcd"), "does not hold the 4 bytes"),
    ],
)
def test_a_safetensors_that_is_none_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(PipelineError) as error:
        open_safetensors(tmp_path / "a.safetensors")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_shrinks_while_it_is_read_is_said(order: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((7, 3, 5), order=order))
    array = open_npy(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(PipelineError, match="became shorter"):
        array.read(4, 7)


def test_reading_a_piece_of_100_gb_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(100_000_000 * 1024)
    array = open_raw(tmp_path / "a.bin", "uint32", (100_000_000, 16, 16), "somebody")
    tracemalloc.start()
    try:
        assert array.read(99_999_000, 100_000_000).shape == (1000, 16, 16)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
