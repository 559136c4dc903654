"""Windows of videos: which there are, and that they hold what the files say."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.exchange import into_store, windows
from pipeline.exchange.detect import open_ids
from pipeline.exchange.ids import ImportConfig
from pipeline.exchange.into_store import import_ids
from pipeline.store.reader import TokenStore
from tests.helpers.token_files import draw_ids, write_folder

LENGTHS = (11, 3, 23, 7)


def import_one(place: Path, out: Path, **values: object) -> TokenStore:
    config = ImportConfig(**{"codebook_size": 24, **values})
    import_ids({"train": open_ids(place, config)}, out, config)
    return TokenStore(out)


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, np.ndarray]:
    made = {f"{n}.npy": draw_ids(length, 2, 5, seed=n) for n, length in enumerate(LENGTHS)}
    write_folder(tmp_path / "videos", made)
    return made


@pytest.mark.parametrize("piece_bytes", [1 << 24, 300, 1])
@pytest.mark.parametrize("shard_windows", [4096, 4])
@pytest.mark.parametrize(
    ("frames", "stride", "hop", "share"),
    [(4, 1, None, 0.0), (4, 1, 1, 0.3), (3, 2, 2, 0.5), (2, 1, 7, 0.0), (1, 1, 1, 0.25)],
)
def test_windows_are_those_cut_by_hand(
    videos: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    frames: int,
    stride: int,
    hop: int | None,
    share: float,
    shard_windows: int,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(windows, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(into_store, "SHARD_WINDOWS", shard_windows)
    values = {"frames": frames, "stride": stride, "hop": hop, "test_share": share}
    store = import_one(tmp_path / "videos", tmp_path / "store", **values)
    span = (frames - 1) * stride + 1
    for split in store.splits:
        expected = []
        for name, ids in videos.items():
            cut = len(ids) - round(len(ids) * share)
            start, stop = (0, cut) if split == "train" else (cut, len(ids))
            for first in range(start, stop - span + 1, hop or span):
                expected.append((name, first, ids[first : first + span : stride]))
        plan = store.plan(split)
        assert plan["video"].to_pylist() == [name for name, _, _ in expected]
        assert plan["first_frame"].to_pylist() == [first for _, first, _ in expected]
        np.testing.assert_array_equal(store.read(split), [ids for _, _, ids in expected])
    assert store.splits == (["train", "test"] if share else ["train"])
    assert store.verify() == []


def test_the_source_is_a_hash_of_all_ids_whatever_their_type(tmp_path: Path) -> None:
    ids = draw_ids(9, 2, 3, 5)
    np.save(tmp_path / "a.npy", ids)
    np.save(tmp_path / "b.npy", np.asfortranarray(ids.astype(">u2")))
    a, b = (import_one(tmp_path / f"{n}.npy", tmp_path / n) for n in "ab")
    assert a.info.source == hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
    assert a.fingerprint == b.fingerprint
    assert a.info.extra == {}
    assert a.plan()["video"].to_pylist()[:2] == ["imported-00000", "imported-00001"]


def test_digits_become_ids_with_the_first_the_lowest(tmp_path: Path) -> None:
    levels = (8, 8, 8, 5, 5, 5)
    digits = np.stack([draw_ids(6, 2, 3, codes=n, seed=n) for n in levels], -1)
    write_folder(tmp_path / "digits", {"a.npy": digits, "b.safetensors": digits[::-1]})
    np.save(tmp_path / "windows.npy", digits[None])
    place_values = np.array([1, 8, 64, 512, 2560, 12800])
    wanted = (digits * place_values).sum(-1)
    values = {"codebook_size": None, "levels": levels}
    store = import_one(tmp_path / "digits", tmp_path / "store", **values)
    np.testing.assert_array_equal(store.read("train"), [wanted, wanted[::-1]])
    assert store.codebook_size == 64_000
    store = import_one(tmp_path / "windows.npy", tmp_path / "one", **values)
    np.testing.assert_array_equal(store.read("train"), wanted[None])
    digits[1, 0, 2, 3] = 5
    np.save(tmp_path / "digits/a.npy", digits)
    with pytest.raises(
        PipelineError, match=r"a\.npy holds 5 at \[1, 0, 2\], but digits of level 4"
    ):
        import_one(tmp_path / "digits", tmp_path / "none", **values)
    with pytest.raises(PipelineError, match=r"must hold integers \[T, h, w, 5\]"):
        import_one(tmp_path / "digits", tmp_path / "none", codebook_size=None, levels=(8,) * 5)


@pytest.mark.parametrize("bad", [24, -1, 1 << 40])
def test_an_id_out_of_range_is_named_with_its_place(bad: int, tmp_path: Path) -> None:
    ids = draw_ids(9, 2, 5)
    ids[7, 1, 3] = bad
    write_folder(tmp_path / "videos", {"a.npy": draw_ids(9, 2, 5), "b.npy": ids})
    with pytest.raises(PipelineError) as error:
        import_one(tmp_path / "videos", tmp_path / "store")
    said = f"b.npy holds {bad} at [7, 1, 3], but ids must be 0 … 23"
    assert said in str(error.value)
    assert not (tmp_path / "store").exists()


def test_memory_does_not_grow_with_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(into_store, "SHARD_WINDOWS", 64)
    peaks = []
    for number, frames in enumerate((2_560, 12_800)):
        path = tmp_path / f"{number}.npy"
        np.lib.format.open_memmap(path, "w+", "<u2", (frames, 16, 16)).flush()
        tracemalloc.start()
        try:
            import_one(path, tmp_path / f"store{number}", frames=20)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)  # Of 5 MB more.


def test_large_windows_make_shards_of_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(into_store, "MAX_SHARD_BYTES", 40 * 32)
    np.save(tmp_path / "a.npy", draw_ids(70, 2, 2, 5))  # 40 bytes a window.
    info = import_one(tmp_path / "a.npy", tmp_path / "store").info
    assert (info.shard_windows, info.chunk_windows, info.num_shards("train")) == (32, 32, 3)
