"""The bytes of a shard: zarr writes them, numcodecs reads them, all of them or a few inner chunks.

A shard is inner chunks of `chunk_windows` windows each, in any order, and behind them an index of
where each begins and how many bytes it has (zarr v3's `sharding_indexed`). The index ends with its
CRC32C, and every chunk with a checksum of its own. Reading them so is several times as fast as
through an array of zarr's, and needs no more of a shard than what is asked for.
"""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline.errors import TokenStoreError
from pipeline.storage.files import parse_json
from pipeline.storage.places import Place, read_parts
from pipeline.storage.sealed import BLANK, SEAL, is_sealed, sealed
from pipeline.store.layout import StoreInfo

ENTRY, CHECKSUM = 16, 4
"""Bytes of a chunk in the index, and of what follows them."""
MISSING = 2**64 - 1
"""Where a chunk that was never written begins."""
HEADER_KEYS = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
"""What a zarr.json must say for other readers of the array to find the same tokens."""
MAX_COMPRESSION = 1 << 15
"""Times that zstd can shrink bytes: a block of 128 KiB, all the same, takes 4 bytes."""
Tokens = NDArray[np.unsignedinteger[Any]]


def array_in_memory(
    info: StoreInfo, split: str, **attributes: Any
) -> tuple[dict[str, Buffer], "zarr.Array[Any]"]:
    """Makes an empty array of a split's layout, and the files that it has, in memory.

    Shards are encoded there: what is written is synced by us, and codecs that somebody else's
    zarr.json asks for are never run.
    """
    files: dict[str, Buffer] = {}
    array = zarr.create_array(
        MemoryStore(files),
        shape=(info.counts[split], *info.grid),
        chunks=(info.chunk_windows, *info.grid),
        shards=(info.shard_windows, *info.grid),
        dtype=info.dtype,
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=int(np.iinfo(info.dtype).max),
        attributes=attributes,
    )
    return files, array


def encode_shard(info: StoreInfo, split: str, shard: int, tokens: NDArray[Any]) -> bytes:
    """Returns the file of a shard with these tokens [n, t, h, w]."""
    files, array = array_in_memory(info, split)
    array[slice(*info.shard_rows(split, shard))] = tokens.astype(info.dtype)
    return files[f"c/{shard}/0/0/0"].to_bytes()


def decode_shard(info: StoreInfo, split: str, shard: int, data: bytes) -> Tokens:
    """Returns the tokens [n, t, h, w] in the file of a shard. Raises as `decode_chunks` does."""
    start, stop = info.shard_rows(split, shard)
    index = read_index(info, data[-index_bytes(info) :])
    num_chunks = -(-(stop - start) // info.chunk_windows)
    spans = [chunk_span(index, chunk, len(data)) for chunk in range(num_chunks)]
    view = memoryview(data)
    tokens = decode_chunks(info, [view[first : first + count] for first, count in spans])
    return tokens[: stop - start]


def index_bytes(info: StoreInfo) -> int:
    """Returns how many bytes at the end of a shard are its index."""
    return ENTRY * (info.shard_windows // info.chunk_windows) + CHECKSUM


def read_index(info: StoreInfo, data: bytes) -> NDArray[np.uint64]:
    """Returns the first byte of each chunk and how many it has [c 2].

    Raises ValueError or RuntimeError if these are not the bytes of an index.
    """
    if len(data) != index_bytes(info):
        raise ValueError(f"the index of its chunks breaks off after {len(data)} bytes")
    return np.frombuffer(CRC32C(location="end").decode(data), "<u8").reshape(-1, 2)


def chunk_span(index: NDArray[np.uint64], chunk: int, size: int) -> tuple[int, int]:
    """Returns the first byte of a chunk and how many it has; none of one that was never written.

    Raises ValueError if they are not in a shard of `size` bytes.
    """
    first, count = (int(number) for number in index[chunk])
    if first == count == MISSING:
        return 0, 0
    if first + count > size:
        raise ValueError(f"chunk {chunk} lies behind its end, at {first:,}")
    return first, count


def decode_chunks(info: StoreInfo, chunks: Sequence[bytes | memoryview]) -> Tokens:
    """Returns the tokens [n t h w] of chunks, one behind the other.

    What a chunk does not hold, or all of one without bytes, is the largest number of the type.
    Raises ValueError or RuntimeError for bytes that are no chunk, or more than one.
    """
    shape = (len(chunks), info.chunk_windows, *info.grid)
    received = sum(map(len, chunks))
    if math.prod(shape) * info.dtype.itemsize > MAX_COMPRESSION * received:
        raise ValueError(
            f"{received:,} bytes never hold {info.chunk_windows * len(chunks)} windows of "
            f"{info.grid} tokens"
        )
    tokens = np.full(shape, np.iinfo(info.dtype).max, info.dtype)
    for out, data in zip(tokens, chunks, strict=True):
        if len(data):
            Zstd().decode(data, out)
    if sys.byteorder == "big":
        tokens.byteswap(inplace=True)
    return tokens.reshape(-1, *info.grid)


def chunks_of(info: StoreInfo, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the chunks in which windows of a shard lie, in order."""
    return np.unique(places // info.chunk_windows)


def read_places(info: StoreInfo, path: Place, size: int, places: NDArray[np.int64]) -> Tokens:
    """Returns windows of a shard of `size` bytes; reads no more than its index and their chunks.

    Raises as `decode_chunks` does, and FileNotFoundError.
    """
    (last,) = read_parts(path, [(size - index_bytes(info), index_bytes(info))])
    index, chunks = read_index(info, last), chunks_of(info, places)
    spans = [chunk_span(index, chunk, size) for chunk in chunks.tolist()]
    tokens = decode_chunks(info, read_parts(path, spans))
    first = np.searchsorted(chunks, places // info.chunk_windows) * info.chunk_windows
    found: Tokens = tokens[first + places % info.chunk_windows]
    return found


def array_header(info: StoreInfo, split: str) -> bytes:
    """Returns the zarr.json of a split."""
    files, _ = array_in_memory(info, split, **{SEAL: BLANK.decode()})
    return sealed(files["zarr.json"].to_bytes())


def is_header(data: bytes, path: object, info: StoreInfo, split: str) -> bool:
    """Says whether this is the zarr.json of a split; also one that another version wrote."""
    header = parse_json(data, path, TokenStoreError, "zarr array")
    wanted = json.loads(array_header(info, split))
    about = header.get("attributes")
    return all(header.get(key) == wanted[key] for key in HEADER_KEYS) and (
        about == {} or (isinstance(about, dict) and is_sealed(data, about.get(SEAL)))
    )
