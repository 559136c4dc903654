"""Captions of videos: from files, from what lies in tars, into a store, and out."""

import csv
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tests.helpers.token_files import draw_ids, npy, write_tar
from tests.stages.test_shards import image, write_shard
from tests.stages.test_token_files import ok, refused, refused_lines

LONG = "x" * 10_001
CAPTIONS = {"fish": "a fish,\nand \x1b[31m \0 more", "bird": "Ein Vogel: «é»", "long": LONG[:-1]}


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


@pytest.fixture
def shards(flow: Flow) -> Path:
    """A tar of five videos of images, of three of which there is a caption, of one a label."""
    images = {f"{n:05d}.png": image(n) for n in range(8)}
    write_shard(
        flow.root / "shards/a.tar",
        {"__key__": "fish", **images, "txt": f" {CAPTIONS['fish']}\n".encode(), "cls": b"7"},
        {"__key__": "bird", **images, "json": json.dumps({"text": CAPTIONS["bird"]}).encode()},
        {"__key__": "half", **images, "json": rb'{"caption": "\ud800"}'},
        {"__key__": "long", **images, "json": json.dumps({"caption": LONG}).encode()},
        {"__key__": "none", **images, "txt": b" "},
    )
    return flow.root / "shards"


def tokenize(flow: Flow, frames: Path, *more: object, out: str = "tokens", code: int = 0) -> str:
    words = flow.arguments("tokenize", *map(str, more), out=out)
    words[words.index("--frames") + 1] = str(frames)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == code, result.output
    return result.output


def captions_of(store: Path) -> dict[str, str]:
    rows = TokenStore(store).plan().to_pylist()
    return {row["video"]: row["caption"] for row in rows if row["caption"] is not None}


def write_csv(path: Path, captions: dict[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("video", "caption"), *captions.items()])
    return path


def test_captions_beside_images_in_tars_go_to_the_windows_of_their_videos(
    flow: Flow, shards: Path
) -> None:
    said = tokenize(flow, shards, "--captions", "beside")
    assert f"{shards}: 3 captions of 3 of 5 videos; without: half and 1 more" in said
    assert "half.json is no text in UTF-8; it says no caption" in said
    assert "a.tar: long: its caption of 10,001 characters is cut off after 10,000\n" in said
    root = flow.root / "tokens"
    assert captions_of(root) == CAPTIONS
    store = TokenStore(root)
    assert store.verify() == [] and store.label_names == []
    total, each = store.num_windows("train"), store.num_windows("train") // 5
    assert f"captions     of {3 * each} of {total} windows\n" in ok("info", root)
    assert "nothing to do" in tokenize(flow, shards, "--captions", "beside")


def test_what_extract_left_is_the_same_from_beside_and_as_a_file(flow: Flow) -> None:
    flow.ok("extract")
    names = [f"{p.parent.name}/{p.name}" for p in sorted((flow.root / "frames").glob("t*/*/"))]
    about = {"video": names, "label": ["fish"] * len(names), "caption": [None, *names[1:]]}
    path = flow.root / "frames/videos.parquet"
    pq.write_table(pa.table(about), path)
    flow.ok("tokenize", "--captions", "beside")
    path.rename(moved := flow.root / "videos.parquet")
    flow.ok("tokenize", "--captions", str(moved), out="given")
    assert captions_of(flow.root / "tokens") == {name: name for name in names[1:]}
    assert content(flow.root / "given") == content(flow.root / "tokens")
    assert "frames has no videos.parquet" in flow.refused("tokenize", "--captions", "beside")
    words = flow.arguments("tokenize", "--captions", "folders")
    assert CliRunner().invoke(cli, words).exit_code == 2


def test_update_adds_captions_and_takes_them_away_and_encodes_nothing(
    flow: Flow, shards: Path
) -> None:
    tokenize(flow, shards, "--labels", "beside", out="plain")
    tokenize(flow, shards, "--labels", "beside")
    both = ("--labels", "beside", "--captions", "beside")
    line = tokenize(flow, shards, *both, code=1)
    assert "other labels, captions or states: the captions of 3 of the videos differ" in line
    assert "encoded 0 now" in tokenize(flow, shards, *both, "--update")
    tokenize(flow, shards, *both, out="fresh")
    assert content(flow.root / "tokens") == content(flow.root / "fresh")
    plan = TokenStore(flow.root / "fresh").plan()
    assert plan.column_names[-2:] == ["label", "caption"]
    assert {row["caption"] for row in plan.to_pylist() if row["label"]} == {CAPTIONS["fish"]}
    tokenize(flow, shards, "--labels", "beside", "--update")
    assert content(flow.root / "tokens") == content(flow.root / "plain")


def test_repair_needs_captions_only_where_those_of_the_store_are_broken(
    flow: Flow, shards: Path
) -> None:
    both = ("--labels", "beside", "--captions", "beside")
    tokenize(flow, shards, *both)
    root = flow.root / "tokens"
    whole, plan = content(root), root / "plan.parquet"
    repair = ("repair", root, "--frames", shards)
    repair = (*repair, "--tokenizer", flow.root / "tokenizer.safetensors", "--device", "cpu")
    for given in ((), both[:2], both[2:], both):
        (root / "manifest/train-00000.parquet").unlink()
        ok(*repair, *given)
        assert content(root) == whole
    other = write_csv(flow.root / "other.csv", {"fish": "another"})
    line = refused(*repair, "--captions", other)
    assert "these are not the --labels and --captions that it was made with" in line
    for damage in (plan.read_bytes()[:-20], plan.read_bytes().replace(b"Vogel", b"Vegel"), b""):
        plan.write_bytes(damage)
        assert str(plan) in refused_lines("verify", root)
        for given in ((), both[:2], both[2:]):
            assert "plan.parquet is damaged; give the --labels and" in refused(*repair, *given)
        ok(*repair, *both)
        assert content(root) == whole


def test_tars_keep_captions_as_texts_that_others_read(flow: Flow, shards: Path) -> None:
    tokenize(flow, shards, "--captions", "beside")
    root, tars = flow.root / "tokens", flow.root / "tars"
    ok("export", root, "--format", "webdataset", "--out", tars)
    rows = {f"train-{row['row']:09d}": row for row in TokenStore(root).plan().to_pylist()}
    with tarfile.open(tars / "train-00000.tar") as tar:
        files = {n: tar.extractfile(n) for n in tar.getnames() if n.endswith(".txt")}
        texts = {name: file.read() for name, file in files.items() if file}
    expected = {f"{key}.txt": row["caption"] for key, row in rows.items() if row["caption"]}
    assert {name: data.decode() for name, data in texts.items()} == expected
    ok("import", tars, "--out", flow.root / "back")
    assert content(flow.root / "back") == content(root)
    # Read as ids of others, whose captions lie beside them.
    (flow.root / "alone").mkdir()
    (tars / "train-00000.tar").rename(flow.root / "alone/0.tar")
    size = TokenStore(root).codebook_size
    words = ("import", flow.root / "alone", "--codebook-size", size, "--captions", "beside")
    ok(*words, "--out", flow.root / "alone-tokens")
    found = captions_of(flow.root / "alone-tokens")
    assert found == {f"0/{key}": row["caption"] for key, row in rows.items() if row["caption"]}
    for form in ("npy", "1x"):
        out = flow.root / f"out-{form}{'.npy' * (form == 'npy')}"
        assert "left out the captions" in ok("export", root, "--format", form, "--out", out)


def test_captions_beside_ids_and_of_files(tmp_path: Path) -> None:
    ids = npy(draw_ids(8, 3, 5))
    members = {"a.npy": ids, "a.txt": b"of a text", "a.json": b'{"label": "x"}', "b.npy": ids}
    members |= {"b.json": b'{"caption": "first"}', "b.txt": b"second", "c.npy": ids}
    path = write_tar(tmp_path / "ids.tar", {**members, "c.txt": b"\xff"})
    words = ("import", path, "--codebook-size", 24, "--frames", 4)
    said = ok(*words, "--captions", "beside", "--out", tmp_path / "store")
    assert "2 captions of 2 of 3 videos; without: ids/c" in said
    assert "c.txt is no text in UTF-8; it says no caption" in said and "left out" not in said
    assert captions_of(tmp_path / "store") == {"ids/a": "of a text", "ids/b": "first"}
    both = ("--captions", "beside", "--labels", "beside", "--out", tmp_path / "both")
    ok(*words, *both)
    assert TokenStore(tmp_path / "both").label_names == ["x"]
    assert captions_of(tmp_path / "both") == captions_of(tmp_path / "store")
    file = write_csv(tmp_path / "captions.csv", {"ids/a": "two\nlines", "ids/c": LONG})
    said = ok(*words, "--captions", file, "--out", tmp_path / "given")
    assert "captions.csv: ids/c: its caption of 10,001 characters is cut off after 10,000" in said
    assert captions_of(tmp_path / "given") == {"ids/a": "two\nlines", "ids/c": LONG[:-1]}
    plain = write_tar(tmp_path / "plain.tar", {"a.npy": ids})
    words = ("import", plain, "--codebook-size", 24, "--captions", "beside")
    line = refused(*words, "--out", tmp_path / "none")
    assert "no .json or .txt beside ids in tars holds a caption. Give a file." in line
    assert not (tmp_path / "none").exists()


def test_windows_of_an_array_have_captions_by_their_rows(tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_bytes(npy(draw_ids(6, 3, 5).reshape(3, 2, 3, 5)))
    file = write_csv(tmp_path / "captions.csv", {"2": "the last"})
    words = ("import", tmp_path / "ids.npy", "--codebook-size", 24, "--captions", file)
    ok(*words, "--out", tmp_path / "store")
    plan = TokenStore(tmp_path / "store").plan()
    assert plan["caption"].to_pylist() == [None, None, "the last"]
