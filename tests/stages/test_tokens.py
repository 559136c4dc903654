"""`mebt tokens`: look, check, bring in ids of other tokenizers, take ids out."""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner, Result

from pipeline.storage.tars import add, new_tar
from pipeline.store.layout import PART_SCHEMA
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow, content, make_tokenizer
from tokenizer import VQGAN


def tokens(*words: object) -> Result:
    return CliRunner().invoke(cli, ["tokens", *map(str, words)])


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 70_000, (50, 2, 4, 4)))
    return path


def test_info_says_what_a_store_holds(made: Flow) -> None:
    result = tokens("info", made.root / "tokens")
    assert result.exit_code == 0
    store = TokenStore(made.root / "tokens")
    for part in (store.fingerprint, "2x4x4 = 32 tokens of 24", "138 windows", "perplexity"):
        assert part in result.output


def test_info_of_samples_names_no_hop(made: Flow) -> None:
    result = tokens("info", made.root / "samples")
    assert "4 frames, stride 1, 16x16 pixels\n" in result.output


def test_a_store_that_cannot_be_is_one_clear_line(ids: Path, tmp_path: Path) -> None:
    words = ("import", ids, "--codebook-size", 2**31 + 1, "--out", tmp_path / "s")
    result = tokens(*words)
    assert result.exit_code == 1
    assert "Error: impossible sizes: codebook 2147483649" in result.output


def test_ids_come_back_as_they_were(ids: Path, tmp_path: Path) -> None:
    assert tokens("import", ids, "--codebook-size", 70_000, "--out", tmp_path / "s").exit_code == 0
    assert tokens("export", tmp_path / "s", "--out", tmp_path / "back.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), np.load(ids))
    before = ids.read_bytes()
    result = tokens("export", tmp_path / "s", "--out", ids)
    assert (result.exit_code, ids.read_bytes()) == (1, before)
    assert f"Error: {ids} exists; choose another --out.\n" in result.output
    assert tokens("verify", tmp_path / "s").exit_code == 0


def test_a_store_comes_back_from_tars_byte_for_byte(flow: Flow) -> None:
    root, tars = flow.root / "tokens", flow.root / "tars"
    for out in (tars, flow.root / "again"):
        assert tokens("export", root, "--format", "webdataset", "--out", out).exit_code == 0
    assert content(tars) == content(flow.root / "again")
    result = tokens("import", tars, "--out", flow.root / "back")
    assert result.exit_code == 0, result.output
    assert content(flow.root / "back") == content(root)
    (flow.root / "back" / "manifest" / "test-00001.parquet").unlink()
    assert tokens("import", tars, "--out", flow.root / "back").exit_code == 0
    assert content(flow.root / "back") == content(root)
    result = tokens("export", root, "--format", "webdataset", "--out", tars)
    assert "exists; choose" in result.output
    (tars / "train-00000.tar").write_bytes(b"")
    result = tokens("import", tars, "--out", flow.root / "other")
    assert "train-00000.tar is too short for 16 windows" in result.output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # It forgets a file.
def test_webdataset_itself_reads_exported_tokens(made: Flow, tmp_path: Path) -> None:
    store = TokenStore(made.root / "tokens")
    tokens("export", store.root, "--format", "webdataset", "--out", tmp_path / "tars")
    found = []
    for path in sorted((tmp_path / "tars").glob("test-*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            about = json.loads(sample["json"])
            assert about.pop("crc32") == zlib.crc32(sample["npy"])
            assert about == store.plan("test").slice(len(found), 1).to_pylist()[0]
            found.append(np.load(io.BytesIO(sample["npy"])))
    np.testing.assert_array_equal(found, store.read("test"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # It forgets a file.
def test_all_tars_of_an_export_are_read_as_one_set(made: Flow, tmp_path: Path) -> None:
    tokens("export", made.root / "tokens", "--format", "webdataset", "--out", tmp_path / "tars")
    keys = []
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            keys.append(sample["__key__"])
    assert len(set(keys)) == len(keys) == 180
    # Those of the first versions, whose keys repeat in every split, come back all the same.
    for path in (tmp_path / "tars").glob("*.tar"):
        split = path.name.partition("-")[0]
        _changed(path, lambda files, s=split: [(n.removeprefix(f"{s}-"), d) for n, d in files])
    assert tokens("import", tmp_path / "tars", "--out", tmp_path / "back").exit_code == 0
    assert content(tmp_path / "back") == content(made.root / "tokens")


def _changed(path: Path, change: Callable[[list[tuple[str, bytes]]], list]) -> None:
    with tarfile.open(path) as tar:
        files = [(entry.name, tar.extractfile(entry).read()) for entry in tar]
    with new_tar(path) as tar:
        for name, data in change(files):
            add(tar, *name.split(".", 1), data)


def _last_token(name: str, data: bytes, token: bytes) -> bytes:
    return data[:-2] + token if name.endswith(".npy") else data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files[:-2], "holds 15 windows, not 16"),
        (lambda files: [*files, *files[:2]], "000000016.npy is not the next of 16 rows from 16"),
        (lambda files: files[2:], "000000017.npy is not the next of 16 rows from 16"),
        (lambda files: [("../x.npy", b"")], "too short|leads out of the tar"),
        (lambda files: [(n, d[:-1]) for n, d in files], "is no array of uint16"),
        (lambda files: [(n, d.replace(b"<u2", b"|O2")) for n, d in files], "is no array of uint16"),
        (lambda files: [(n, d.replace(b"(2, 4, 4)", b"(4, 4, 2)")) for n, d in files], "no array"),
        (lambda files: [(n, _last_token(n, d, b"\1\0")) for n, d in files], "its CRC is another"),
        (
            lambda files: [(n, _last_token(n, d, b"\x18\0")) for n, d in files if n[-1] == "y"],
            "holds token 24 of 24",
        ),
        (lambda files: [f for f in files if ".npy" not in f[0]] * 1, "too short|no .npy"),
        (lambda files: [], "holds 0 windows, not 16"),
    ],
)
def test_tars_that_are_no_tokens_are_refused_by_name(
    made: Flow, tmp_path: Path, change: Callable, message: str
) -> None:
    tars = tmp_path / "tars"
    tokens("export", made.root / "tokens", "--format", "webdataset", "--out", tars)
    _changed(tars / "train-00001.tar", change)
    result = tokens("import", tars, "--out", tmp_path / "back")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert re.search(message, result.output), result.output
    assert "train-00001.tar" in result.output
    assert not (tmp_path / "back").exists()


def test_imports_are_told_what_they_lack(made: Flow, ids: Path, tmp_path: Path) -> None:
    assert tokens("import", ids, "--out", tmp_path / "s").exit_code == 2
    tars, words = tmp_path / "tars", ("--out", tmp_path / "s")
    tokens("export", made.root / "tokens", "--format", "webdataset", "--out", tars)
    assert tokens("import", tars, "--codebook-size", 9, *words).exit_code == 2
    for more in ((), ("--codebook-size", 9)):
        result = tokens("import", made.root / "tokens", *more, *words)
        assert result.exit_code == 1
        assert "tokens is a token store already, not tars of one: give it to" in result.output
    np.save(tmp_path / "ids.npy", np.zeros((1, 2, 2, 2), np.int64))
    given = (tmp_path / "ids.npy", "--test", made.root / "tokens", "--codebook-size", 9)
    result = tokens("import", *given, "--out", tmp_path / "s")
    assert "tokens is a token store already, which needs no import" in result.output
    (tars / "test-00000.tar").unlink()
    assert "test-00000.tar is missing" in tokens("import", tars, *words).output
    assert not (tmp_path / "s").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no ids" in tokens("import", tmp_path / "empty", "--out", tmp_path / "s").output
    words = ("--format", "webdataset", "--split", "train", "--out", tmp_path / "t")
    assert tokens("export", made.root / "tokens", *words).exit_code == 2


@pytest.mark.slow
def test_imported_ids_train_and_sample_and_decode_says_why_not(flow: Flow, tmp_path: Path) -> None:
    for name, count in (("train", 40), ("test", 8)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(1).integers(0, 9, (count, 2, 3, 5)))
    words = ["--codebook-size", 9, "--test", tmp_path / "test.npy", "--out", flow.root / "tokens"]
    assert tokens("import", tmp_path / "train.npy", *words).exit_code == 1  # There is another.
    assert tokens("import", tmp_path / "train.npy", *words, "--overwrite").exit_code == 0
    flow.ok("train", "--overwrite")
    flow.ok("sample", "--overwrite")
    sampled = TokenStore(flow.root / "samples")
    assert sampled.grid == (2, 3, 5)
    assert int(sampled.read("sample").max()) < 9
    assert "imported" in flow.refused("decode")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), int), "must hold integers [N, t, h, w] or [T, h, w], but holds int64"),
        (np.zeros((3, 2, 2, 2)), "holds float64 [3, 2, 2, 2], which are floats. Save the ids as"),
        (np.zeros((3, 2, 2, 2), bool), "bool [3, 2, 2, 2], which are truth values. Save the ids"),
        (np.zeros((3, 2, 2, 2), "M8[s]"), "[3, 2, 2, 2], which are dates. Save the ids as integer"),
        (np.zeros((3, 2, 2, 2), "i4,f4"), "[3, 2, 2, 2], which are records. Save the ids as integ"),
        (np.full((3, 2, 2, 2), 10), "ids must be 0 … 9"),
        (np.full((3, 2, 2, 2), -1), "ids must be 0 … 9"),
        (np.zeros((0, 2, 2, 2), np.int64), "holds no window"),
        (np.array([{}]), "no .npy of numbers"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", array, allow_pickle=True)
    result = tokens(
        "import", tmp_path / "ids.npy", "--codebook-size", 10, "--out", tmp_path / "store"
    )
    assert result.exit_code == 1
    assert message in result.output
    assert "--levels" not in result.output
    assert not (tmp_path / "store" / "store.json").exists()


@pytest.mark.parametrize("codebook_size", [70_000, 9000])
def test_a_raw_array_is_told_how_to_get_a_header(codebook_size: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, codebook_size, (5, 2, 4, 3))
    kind = np.uint16 if codebook_size < 70_000 else np.uint32
    ids.astype(kind).tofile(tmp_path / "ids.bin")
    words = ("--codebook-size", codebook_size, "--out", tmp_path / "s")
    result = tokens("import", tmp_path / "ids.bin", *words)
    assert result.exit_code == 1
    assert f"If its {ids.size * kind().itemsize} bytes are a raw array" in result.output
    assert "allow_pickle" not in result.output
    (line,) = re.findall('python -c "(.*)" with numbers', result.output)
    line = line.replace("t, h, w", "2, 4, 3").replace("'ids.npy'", f"'{tmp_path}/ids.npy'")
    exec(line, {})
    assert tokens("import", tmp_path / "ids.npy", *words).exit_code == 0
    np.testing.assert_array_equal(TokenStore(tmp_path / "s").read("train"), ids)


def test_verify_lists_everything_that_is_wrong(flow: Flow) -> None:
    store = TokenStore(flow.root / "tokens")
    broken = [store.shard_file("train", 2), store.shard_file("test", 0)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-1])
    header = flow.root / "tokens" / "train.zarr" / "zarr.json"
    header.write_text(header.read_text().replace("uint16", "uint32"))
    test_header = flow.root / "tokens" / "test.zarr" / "zarr.json"
    test_header.write_text("{")
    result = tokens("verify", flow.root / "tokens")
    assert result.exit_code == 1
    for path in (*broken, header, test_header):
        assert str(path) in result.output
    assert "4 things are wrong" in result.output
    test_header.unlink()
    test_header.symlink_to("/etc/hostname")
    result = tokens("verify", flow.root / "tokens")
    assert "4 things are wrong" in result.output
    assert f"{test_header} is a link that leads out of the store; put a copy there" in result.output


def repair(flow: Flow, *, store: str = "tokens", tokenizer: str = "tokenizer") -> Result:
    words = (
        "--frames",
        flow.root / "frames",
        "--tokenizer",
        flow.root / f"{tokenizer}.safetensors",
    )
    return tokens("repair", flow.root / store, *words, "--device", "cpu")


def test_verify_names_parts_that_commit_nothing(flow: Flow) -> None:
    manifest = flow.root / "tokens" / "manifest"
    (manifest / "train-00099.parquet").write_bytes(b"")
    result = tokens("verify", flow.root / "tokens")
    assert result.exit_code == 1
    assert f"{manifest / 'train-00099.parquet'} commits no shard" in result.output
    assert repair(flow).exit_code == 0
    assert tokens("verify", flow.root / "tokens").exit_code == 0


def test_repair_redoes_what_is_broken_and_nothing_else(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flow.root / "tokens"
    before = content(root)
    store = TokenStore(root)
    assert f"{root}: whole" in repair(flow).output
    store.shard_file("train", 2).write_bytes(b"")
    (root / "manifest" / "test-00001.parquet").unlink()
    part = root / "manifest" / "train-00004.parquet"
    forged = pq.read_table(part).to_pylist()[0] | {"sha256": "0" * 64}
    pq.write_table(pa.Table.from_pylist([forged], PART_SCHEMA), part)
    (root / "plan.parquet").write_bytes(b"PAR1")
    (root / "test.zarr" / "zarr.json").write_text("{}")
    assert "5 things are wrong" in tokens("verify", root).output
    encoded = []
    encode = VQGAN.encode
    monkeypatch.setattr(VQGAN, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    result = repair(flow)
    assert result.exit_code == 0, result.output
    assert "encoded 48 windows anew: train 2, train 4, test 1" in result.output
    assert sum(encoded) == 48
    assert content(root) == before


def test_a_store_in_half_precision_says_so_is_not_mixed_and_is_repaired_in_it(flow: Flow) -> None:
    half = ("--set", "tokenize.precision=bf16-mixed")
    assert "extra" in flow.refused("tokenize", *half)
    flow.ok("tokenize", *half, out="half")
    root = flow.root / "half"
    before = content(root)
    assert "precision    bf16-mixed" in tokens("info", root).output
    assert "extra" in flow.refused("tokenize", out="half")
    exact = TokenStore(flow.root / "tokens").read("train")
    assert 0 < (TokenStore(root).read("train") != exact).mean() < 0.2
    TokenStore(root).shard_file("train", 2).write_bytes(b"")
    assert "encoded 16 windows anew: train 2" in repair(flow, store="half").output
    assert content(root) == before


def test_repair_wants_what_the_store_was_made_of(flow: Flow) -> None:
    make_tokenizer(flow.root / "other.safetensors", seed=1)
    assert "Give the tokenizer that made the tokens" in repair(flow, tokenizer="other").output
    assert "was not made by `mebt tokenize`" in repair(flow, store="samples").output
    next((flow.root / "frames" / "train").rglob("*.png")).unlink()
    (flow.root / "frames" / "train.txt").unlink()
    result = repair(flow)
    assert result.exit_code == 1
    assert "does not hold the frames that" in result.output


def test_a_folder_that_is_no_store_is_named(tmp_path: Path) -> None:
    result = tokens("info", tmp_path)
    assert result.exit_code == 1
    assert "no token store" in result.output
