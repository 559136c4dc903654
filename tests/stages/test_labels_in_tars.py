"""Labels beside ids in tars: taken as `mebt tokenize` takes those beside images."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.store.reader import TokenStore
from tests.helpers.small import content
from tests.helpers.token_files import draw_ids, npy, write_folder, write_tar
from tests.stages.test_token_files import ok, refused

IDS = npy(draw_ids(8, 3, 5))


def tar(path: Path, beside: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Writes ids for each key, and what lies beside them, by extension."""
    members = {}
    for key, texts in beside.items():
        members |= {f"{key}.npy": IDS, **{f"{key}.{kind}": text for kind, text in texts.items()}}
    return write_tar(path, members)


def words(place: Path, *more: object, beside: bool = True) -> list[object]:
    labels = ["--labels", "beside"] if beside else []
    return ["import", place, "--codebook-size", 24, "--frames", 4, *labels, *more]


def labels_of(store: Path) -> dict[str, str | None]:
    """Returns the label of each video of a store; of one without any there is no column."""
    plan = TokenStore(store).plan().to_pylist()
    return {f"{row['split']}: {row['video']}": row["label"] for row in plan}


def test_labels_beside_ids_go_to_the_windows_of_their_videos(tmp_path: Path) -> None:
    about = {name: json.dumps(said).encode() for name, said in (("a", {"class": 3}), ("b", {}))}
    tar(
        tmp_path / "ids/0.tar",
        {
            "walk/a": {"json": about["a"], "cls": b"9", "txt": b"\xff"},
            "b": {"json": about["b"], "cls": b" bird \n"},
            "c": {"txt": b"a caption"},
        },
    )
    said = ok(*words(tmp_path / "ids", "--out", tmp_path / "store"))
    assert f"{tmp_path / 'ids'}: 2 labels of 2 of 3 videos; without: 0/c" in said
    assert "left out members beside the ids: 2, first walk/a.txt" in said
    found = {"train: 0/walk/a": "3", "train: 0/b": "bird", "train: 0/c": None}
    assert labels_of(tmp_path / "store") == found
    info = ok("info", tmp_path / "store")
    assert "2, by windows: 3 2, bird 2" in info and "no label     2 windows" in info
    before = content(tmp_path / "store")
    ok(*words(tmp_path / "ids", "--out", tmp_path / "store"))
    assert content(tmp_path / "store") == before
    ok(*words(tmp_path / "ids", "--out", tmp_path / "plain", beside=False))
    assert TokenStore(tmp_path / "plain").label_names == []


def test_both_splits_have_the_labels_of_their_own_tars(tmp_path: Path) -> None:
    for split, label in (("train", b"fish"), ("test", b"bird")):
        tar(tmp_path / "ids" / split / "0.tar", {"a": {"cls": label}, f"{split}/a": {"cls": b"x"}})
    ok(*words(tmp_path / "ids", "--out", tmp_path / "two"))
    found = {f"{split}: 0/{split}/a": "x" for split in ("train", "test")}
    found |= {"train: 0/a": "fish", "test: 0/a": "bird"}
    assert labels_of(tmp_path / "two") == found
    place = tmp_path / "ids/train"
    ok(*words(place, "--test-share", 0.5, "--out", tmp_path / "ends"))
    assert labels_of(tmp_path / "ends")["test: 0/a"] == "fish"
    write_folder(tmp_path / "plain", {"0/a.npy": draw_ids(8, 3, 5)})
    said = ok(*words(place, "--test", tmp_path / "plain", "--out", tmp_path / "mixed"))
    assert "2 labels of 2 of 3 videos; without: 0/a.npy" in said


def test_what_is_no_label_is_said_and_the_ids_are_kept(tmp_path: Path) -> None:
    texts = {
        "damaged": {"json": b'{"label": "fi'},
        "deep": {"json": b"[" * 100_000},
        "listed": {"json": b'["fish"]'},
        "bytes": {"cls": b"\xff\xfe"},
        "lines": {"cls": b"a\nb"},
        "long": {"cls": b"x" * 201},
        "escape": {"json": rb'{"label": "\u001b[31m"}'},
        "nothing": {"cls": b" ", "json": b'{"label": {"name": 1}}'},
        "after": {"json": b"{", "cls": b"fish"},
    }
    path = tar(tmp_path / "ids.tar", texts)
    said = ok(*words(path, "--out", tmp_path / "store")).splitlines()
    begin = next(place for place, line in enumerate(said) if "1 label of 1 of 9 videos" in line)
    assert "; without: ids/damaged and 7 more" in said[begin]
    for line, part in zip(
        said[begin + 1 : begin + 7],
        (
            "ids.tar: damaged.json is not the JSON of a sample",
            "ids.tar: deep.json is not the JSON of a sample",
            "ids.tar: listed.json is not the JSON of a sample: found a list",
            "ids.tar: bytes.cls is no text in UTF-8; it says no label",
            "ids.tar: lines has no label in 'a\\nb'",
            "4 more are no labels",
        ),
        strict=True,
    ):
        assert part in line and len(line) < 400
    found = labels_of(tmp_path / "store")
    assert {name for name, label in found.items() if label} == {"train: ids/after"}
    assert "\x1b" not in "".join(said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"fi\tsh", "no .json or .cls beside ids in tars holds a label; for example "),
        (b"", "no .json or .cls beside ids in tars holds a label. Give a file."),
    ],
)
def test_no_label_at_all_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tar(tmp_path / "ids.tar", {"a": {"cls": text}})
    assert message in refused(*words(path, "--out", tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_labels_beside_are_of_tars_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "ids", {"a.npy": draw_ids(8, 3, 5)})
    line = refused(*words(tmp_path / "ids", "--out", tmp_path / "store"))
    assert "ids: no .json or .cls beside ids in tars holds a label. Give a file." in line
    place = tar(tmp_path / "ids.tar", {"a": {"cls": b"fish"}})
    ok(*words(place, "--out", tmp_path / "store"))
    ok("export", tmp_path / "store", "--format", "webdataset", "--out", tmp_path / "tars")
    ours = ("import", tmp_path / "tars", "--labels", "beside", "--out", tmp_path / "back")
    assert "says all: give no option" in refused(*ours, code=2)
    assert "folders" in refused(*words(place, "--labels", "folders", beside=False), code=2)
