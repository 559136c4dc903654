"""Files that hold the SHA-256 of their own bytes: one flipped bit anywhere is noticed."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

SEAL, BLANK = "sha256", b"0" * 64
"""What a file calls that hash, and what stood in its place when it was computed."""


def sealed(data: bytes) -> bytes:
    """Puts the SHA-256 of a file's bytes where it has left room for it."""
    assert data.count(BLANK) == 1
    return data.replace(BLANK, hashlib.sha256(data).hexdigest().encode())


def is_sealed(data: bytes, digest: object) -> bool:
    """Says whether a file's bytes are those that were sealed with this digest."""
    seal = str(digest).encode()
    if len(seal) != len(BLANK) or data.count(seal) != 1:
        return False
    return hashlib.sha256(data.replace(seal, BLANK)).hexdigest().encode() == seal


def to_parquet(table: pa.Table) -> bytes:
    """Returns the file of a table, which holds a hash of its own bytes."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({SEAL: BLANK.decode()})
    return sealed(buffer.getvalue())


def from_parquet(data: bytes, *, rows: int | None) -> pa.Table:
    """Reads a table of so many rows, if that is known.

    Raises ValueError, before that takes memory, if its rows are more or fewer, or its bytes not
    those that were written. The first versions wrote no hash of these, but Arrow's own schema.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    if rows is not None and file.metadata.num_rows != rows:
        raise ValueError(f"it has {file.metadata.num_rows:,} rows, not {rows:,}")
    about = file.metadata.metadata or {}
    whole = SEAL.encode() in about and is_sealed(data, about[SEAL.encode()].decode("latin-1"))
    if not whole and set(about) != {b"ARROW:schema"}:
        raise ValueError("its bytes are not those that were written")
    return file.read()
