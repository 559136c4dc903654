"""Shards read by numcodecs are those that zarr reads, and damage to one is damage to the other."""

from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from benchmarks.bucket import stand_in, upload
from benchmarks.readers import decode_by_zarr
from pipeline.errors import TokenStoreError
from pipeline.store import reader, shards
from pipeline.store.layout import StoreInfo, shard_name
from pipeline.store.reader import TokenStore
from pipeline.store.shards import decode_shard, encode_shard, index_bytes
from tests.pipeline.store.test_reader import make

INFO = StoreInfo(
    tokenizer=None,
    codebook_size=300,
    grid=(2, 3, 2),
    source="s",
    counts={"train": 13},
    shard_windows=12,
    chunk_windows=3,
)


by_us, by_zarr = (partial(decode, INFO, "train") for decode in (decode_shard, decode_by_zarr))


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (count, *INFO.grid))


@pytest.mark.parametrize("shard", [0, 1])
def test_both_readers_agree(shard: int) -> None:
    tokens = drawn(13)[slice(*INFO.shard_rows("train", shard))]
    data = encode_shard(INFO, "train", shard, tokens)
    np.testing.assert_array_equal(by_us(shard, data), tokens)
    np.testing.assert_array_equal(by_zarr(shard, data), tokens)


def test_no_flipped_bit_makes_other_tokens() -> None:
    """Some change nothing: zstd leaves a bit unused, and says a size in two ways."""
    tokens = drawn(12)
    data = encode_shard(INFO, "train", 0, tokens)
    noticed = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        readers = [by_us]
        readers += [by_zarr] * (bit % 11 == 0)  # It takes longer.
        for read in readers:
            try:
                np.testing.assert_array_equal(read(0, bytes(flipped)), tokens)
            except (ValueError, RuntimeError):
                noticed += 1
    assert noticed > 0.98 * 8 * len(data) * 12 / 11


@pytest.mark.parametrize("kept", [1, 19, 60, 67, 68, 100])
def test_both_readers_notice_that_a_shard_breaks_off(kept: int) -> None:
    data = encode_shard(INFO, "train", 0, drawn(12))[:kept]
    for read in (
        lambda: by_us(0, data),
        lambda: by_zarr(0, data),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            read()


def test_an_empty_shard_is_not_one_without_tokens() -> None:
    """To zarr it is: all of its tokens are missing."""
    with pytest.raises(ValueError, match="breaks off after 0 bytes"):
        by_us(0, b"")


def with_index(data: bytes, **entries: tuple[int, int]) -> bytes:
    """Puts other entries for chunks c0, c1, … into the index, and seals it again."""
    end = index_bytes(INFO)
    index = np.frombuffer(data[-end:-4], "<u8").reshape(-1, 2).copy()
    for name, entry in entries.items():
        index[int(name[1:])] = entry
    sealed = index.tobytes()
    return data[:-end] + sealed + google_crc32c.value(sealed).to_bytes(4, "little")


def test_a_chunk_that_was_never_written_has_no_tokens() -> None:
    data = with_index(encode_shard(INFO, "train", 0, drawn(12)), c1=(2**64 - 1, 2**64 - 1))
    found = by_us(0, data)
    np.testing.assert_array_equal(found, by_zarr(0, data))
    assert (found[3:6] == 65_535).all() and (found[:3] == drawn(12)[:3]).all()


@pytest.mark.parametrize("entry", [(0, 2**40), (2**63, 2**63), (2**64 - 1, 5), (10**6, 4)])
def test_a_chunk_that_lies_elsewhere_is_refused(entry: tuple[int, int]) -> None:
    data = with_index(encode_shard(INFO, "train", 0, drawn(12)), c2=entry)
    with pytest.raises(ValueError, match="chunk 2 lies behind its end"):
        by_us(0, data)


@pytest.mark.parametrize("windows", [2, 4])
def test_a_chunk_of_other_windows_is_never_taken_for_one(windows: int, tmp_path: Path) -> None:
    (own,) = TokenStore(make(tmp_path / "own", drawn(3), 300, shard=3, chunk=3)).info.shards()
    data = encode_shard(INFO, "train", 0, drawn(12))
    other = TokenStore(make(tmp_path / "other", drawn(4), 300, shard=windows, chunk=windows))
    chunk = other.files.read(shard_name(*own))[: -index_bytes(other.info)]
    forged = with_index(
        data[: -index_bytes(INFO)] + chunk + data[-index_bytes(INFO) :],
        c0=(len(data) - index_bytes(INFO), len(chunk)),
    )
    if windows > INFO.chunk_windows:
        with pytest.raises((ValueError, RuntimeError)):
            by_us(0, forged)
    else:
        assert by_us(0, forged).max() == 65_535


def test_few_windows_are_read_without_their_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = drawn(400)
    store = TokenStore(make(tmp_path, tokens, 300, shard=200, chunk=5))
    fetched = []

    def read_parts(place, spans):
        parts = kept(place, spans)
        fetched.extend(map(len, parts))
        return parts

    kept = shards.read_parts
    monkeypatch.setattr(shards, "read_parts", read_parts)
    monkeypatch.setattr(store, "read_shard", lambda *_: pytest.fail("the whole shard was read"))
    rows = [399, 7, 201, 8, 7]
    np.testing.assert_array_equal(reader.read_rows(store, "train", rows), tokens[rows])
    size = store.shard_file("train", 0).stat().st_size
    # Three chunks of forty, and two indices.
    assert sum(fetched) < 2 * (4 * size / 40 + index_bytes(store.info))


def test_a_bucket_sends_no_more_than_the_chunks_of_few_windows(tmp_path: Path) -> None:
    """Nor what lies between two of one shard."""
    tokens = np.random.default_rng(0).integers(0, 60_000, (2000, 2, 4, 8))
    store = make(tmp_path, tokens, 60_000, shard=2000, chunk=20)
    size = TokenStore(store).shard_file("train", 0).stat().st_size
    with stand_in() as (url, sent):
        there = TokenStore(upload(store, f"{url}/tokens"))
        sent.bytes = 0
        found = reader.read_rows(there, "train", [0, 1999])
    np.testing.assert_array_equal(found, tokens[[0, 1999]])
    assert size / 50 < sent.bytes < size / 20


@pytest.mark.parametrize("what", ["first", "last", "short", "gone"])
def test_damage_where_few_windows_are_read_is_named(tmp_path: Path, what: str) -> None:
    store = TokenStore(make(tmp_path, drawn(400), 300, shard=200, chunk=5))
    path = store.shard_file("train", 1)
    data = bytearray(path.read_bytes())
    if what == "gone":
        path.unlink()
    else:
        data[{"first": 20, "last": -9, "short": 0}[what]] ^= 1
        path.write_bytes(data[: 500 if what == "short" else None])
    assert len(store.read("train", 3, 5)) == 2
    with pytest.raises(TokenStoreError, match=r"train\.zarr/c/1/0/0/0 (is missing|cannot be dec)"):
        store.read("train", 201, 203)
