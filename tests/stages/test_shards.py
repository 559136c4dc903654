"""`mebt extract` and `mebt tokenize` on WebDataset tars as others publish them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.errors import FrameError
from pipeline.forecast.footage import look_at_videos
from pipeline.frames.given import expand
from pipeline.frames.scan import scan_frames
from pipeline.storage.files import read_json
from pipeline.store.reader import TokenStore
from pipeline.video.tiles import ExtractConfig
from stages.__main__ import cli
from tests.helpers.film import number_of, picture, write_film
from tests.helpers.small import Flow, content

VALUES = ("--set", "extract.size=32", "--set", "extract.test_share=0.25")


def film(first: int = 0, frames: int = 8) -> bytes:
    file = io.BytesIO()
    write_film(file, (picture(first + n, 64, 64) for n in range(frames)), "ffv1", format="matroska")
    return file.getvalue()


def image(number: int, size: int = 64, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number, size, size)).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, *samples: dict) -> Path:
    """Writes a tar as its publishers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def published(folder: Path) -> Path:
    """Two shards of what video2dataset writes, and what may come along."""
    about = json.dumps({"caption": "a fish", "label": 3, "fps": 25}).encode()
    write_shard(
        folder / "00000.tar",
        {"__key__": "000000001", "mkv": film(), "json": about},
        {"__key__": "000000002", "MKV": film(100), "txt": b" two\nlines ", "cls": b"7"},
    )
    write_shard(
        folder / "00001.tar",
        {"__key__": "000000001", "mkv": film(200), "json": b"{"},
        {"__key__": "000000004", "mkv": film()[:400], "json": b"{}"},
        {"__key__": "000000005", "json": b"{}"},
        {"__key__": "000000006", "mkv": film(), "mp4": film()},
    )
    return folder


def extract(videos: Sequence[object], out: Path, *more: str) -> Result:
    words = [word for place in videos for word in ("--videos", str(place))]
    return CliRunner().invoke(cli, ["extract", *words, "--out", str(out), *VALUES, *more])


def first_frames(frames: Path) -> dict[str, int]:
    """Reads the number that the first frame of each video shows."""
    return {
        video.name: number_of(np.asarray(Image.open(video.frames[0]).convert("RGB")))
        for video in scan_frames(frames).videos
        if video.split == "train"
    }


@pytest.mark.parametrize("given", ["folder", "pattern", "list"])
def test_every_sample_of_a_shard_is_kept_or_rejected(tmp_path: Path, given: str) -> None:
    shards = published(tmp_path / "shards")
    places = {
        "folder": [shards],
        "pattern": [shards / "{00000..00001}.tar"],
        "list": [shards / "00000.tar", shards / "00001.tar"],
    }
    result = extract(places[given], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    assert first_frames(tmp_path / "frames") == {
        "train/00000-000000001": 0,
        "train/00000-000000002": 100,
        "train/00001-000000001": 200,
    }
    record = read_json(tmp_path / "frames" / "extract.json", FrameError, "record")
    reasons = {r["name"].rpartition(": ")[2]: r["reason"] for r in record["rejected"]}
    assert reasons.keys() == {"000000001.json", "000000005", "000000006", "00001-000000004"}
    assert "is not the JSON of a sample" in reasons["000000001.json"]
    assert "its video is kept" in reasons["000000001.json"]
    assert reasons["000000005"] == "holds neither a video nor an image"
    assert reasons["000000006"] == "holds 2 videos"
    assert "00001.tar: 000000004.mkv" in reasons["00001-000000004"]
    texts = {
        row["video"]: row for row in pq.read_table(tmp_path / "frames/videos.parquet").to_pylist()
    }
    assert len(texts) == 6  # Of train and test.
    assert texts["test/00000-000000001"] == {
        "video": "test/00000-000000001",
        "source": f"{shards / '00000.tar'}: 000000001",
        "caption": "a fish",
        "label": "3",
    }
    assert texts["train/00000-000000002"]["caption"] == "two\nlines"
    assert texts["train/00000-000000002"]["label"] == "7"
    assert texts["train/00001-000000001"]["caption"] is None


def test_shards_make_the_frames_that_their_videos_make(tmp_path: Path) -> None:
    shards = published(tmp_path / "shards")
    (tmp_path / "videos").mkdir()
    for name, first in (("00000-000000001", 0), ("00000-000000002", 100), ("00001-000000001", 200)):
        (tmp_path / "videos" / f"{name}.mkv").write_bytes(film(first))
    assert extract([shards], tmp_path / "one").exit_code == 0
    assert extract([tmp_path / "videos"], tmp_path / "two").exit_code == 0
    one, two = (
        {
            name: data
            for name, data in content(tmp_path / out).items()
            if name.endswith((".png", ".txt"))
        }
        for out in ("one", "two")
    )
    assert one == two and len(one) == 26
    # The same again decodes nothing, wherever the tars lie now; other tars are other videos.
    before = content(tmp_path / "one")
    assert extract([shards], tmp_path / "one").exit_code == 0
    assert content(tmp_path / "one") == before
    write_shard(shards / "00000.tar", {"__key__": "000000001", "mkv": film(5)})
    result = extract([shards], tmp_path / "one")
    assert result.exit_code == 1 and "other videos" in result.output


def test_labels_beside_images_in_tars_are_tokenized_with_them(flow: Flow, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    numbered = {f"{n:05d}.png": image(n) for n in range(8)}
    write_shard(
        shards / "a.tar",
        {"__key__": "fish/one", **numbered, "json": b'{"label": "fish"}'},
        {"__key__": "none", **numbered},
        {"__key__": "odd", **numbered, "cls": b"a\tb"},
        *({"__key__": f"two_{n:04d}", "png": image(n), "cls": b"7"} for n in range(8)),
    )
    write_shard(shards / "test.tar", {"__key__": "two", **numbered, "cls": b"bird"})
    words = flow.arguments("tokenize", "--labels", "beside")
    words[words.index("--frames") + 1] = str(shards)
    words[words.index("--out") + 1] = str(tmp_path / "tokens")
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "3 labels of 3 of 5 videos; without: none and 1 more" in result.output
    assert "a.tar: odd has no label in 'a\\tb'" in result.output
    plan = TokenStore(tmp_path / "tokens").plan("train").to_pylist()
    found = {row["video"]: row["label"] for row in plan}
    assert found == {"fish/one": "fish", "none": None, "odd": None, "two": "7"}
    (label,) = set(TokenStore(tmp_path / "tokens").plan("test")["label"].to_pylist())
    assert label == "bird"


def test_a_key_that_is_too_long_for_a_name_is_rejected_alone(tmp_path: Path) -> None:
    keys = ["one", *("b" * length for length in (245, 300, 5000)), "two", "three", "four"]
    write_shard(tmp_path / "a.tar", *({"__key__": key, "mkv": film()} for key in keys))
    result = extract([tmp_path / "a.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / "frames" / "extract.json", FrameError, "record")
    assert len(record["rejected"]) == 3
    assert all("too long; rename the video" in item["reason"] for item in record["rejected"])
    names = {path.parent.name for path in (tmp_path / "frames").glob("t*/*/*.png")}
    assert names == {"a-one", "a-two", "a-three", "a-four"}


def test_members_without_a_key_are_rejected_and_hidden_ones_are_not_looked_at(
    tmp_path: Path,
) -> None:
    names = ("one.mkv", ".mkv", "a/.MP4", ".json", "._two.mkv", ".DS_Store", "a/.hidden")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            about = tarfile.TarInfo(name)
            about.size = len(film())
            tar.addfile(about, io.BytesIO(film()))
    result = extract([tmp_path / "a.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / "frames" / "extract.json", FrameError, "record")
    reasons = {item["name"].rpartition(": ")[2]: item["reason"] for item in record["rejected"]}
    assert reasons.keys() == {".mkv", "a/.MP4", ".json"}
    assert all("is an extension alone: there is no key" in reason for reason in reasons.values())
    images = write_shard(
        tmp_path / "images/b.tar", *({"__key__": f"v_{n}", "png": image(n)} for n in range(4))
    )
    with tarfile.open(images, "a") as tar:
        tar.addfile(tarfile.TarInfo(".png"))
    (rejected,) = scan_frames(images.parent).rejected
    assert rejected.name.endswith("b.tar: .png") and "no key" in rejected.reason


def test_texts_that_are_cut_off_are_said(tmp_path: Path) -> None:
    long = json.dumps({"caption": "c" * 10_001, "label": "l" * 10_000}).encode()
    write_shard(tmp_path / "a.tar", {"__key__": "one", "mkv": film(), "json": long})
    result = extract([tmp_path / "a.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    said = "a.tar: one: its caption of 10,001 characters is cut off after 10,000; its video is kept"
    assert said in result.output and "rejected 1" in result.output
    rows = pq.read_table(tmp_path / "frames/videos.parquet").to_pylist()
    assert {(len(row["caption"]), len(row["label"])) for row in rows} == {(10_000, 10_000)}


def test_texts_of_another_kind_are_said(tmp_path: Path) -> None:
    other = b'{"caption": {"a": 1}, "text": "fish", "label": 1.5}'
    write_shard(tmp_path / "a.tar", {"__key__": "one", "mkv": film(), "json": other})
    write_shard(tmp_path / "b.tar", {"__key__": "one", "mkv": film(), "json": b'{"text": [1]}'})
    result = extract([tmp_path / "{a,b}.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    for tar, why in (("a", "label is a float"), ("b", "caption is a list")):
        line = f"{tar}.tar: one.json: its {why}, no text or whole number; its video is kept\n"
        assert line in result.output
    rows = pq.read_table(tmp_path / "frames/videos.parquet").to_pylist()
    assert {(row["caption"], row["label"]) for row in rows} == {("fish", None), (None, None)}


def test_an_empty_text_hides_none_beside_it(tmp_path: Path) -> None:
    empty = b'{"caption": " ", "text": "fish", "label": ""}'
    sample = {"__key__": "one", "mkv": film(), "json": empty, "cls": b"3"}
    write_shard(tmp_path / "a.tar", sample)
    result = extract([tmp_path / "a.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "frames/videos.parquet").to_pylist()
    assert {(row["caption"], row["label"]) for row in rows} == {("fish", "3")}


def test_texts_that_are_no_text_are_rejected_alone(tmp_path: Path) -> None:
    half = b'{"caption": "a \\ud800 b", "label": "\\udfff"}'
    write_shard(tmp_path / "a.tar", {"__key__": "one", "mkv": film(), "json": half})
    result = extract([tmp_path / "a.tar"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    assert "a.tar: one.json is no text in UTF-8; its video is kept" in result.output
    assert "its video is kept" in result.output
    assert set(pq.read_table(tmp_path / "frames/videos.parquet")["caption"].to_pylist()) == {None}


def test_images_of_a_kind_that_is_not_read_are_said(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"__key__": "1", "0.gif": image(0), "1.gif": image(1)})
    said = r"a\.tar holds no image \(\.png, \.jpg, .*, and no clip: .*a\.tar: 1 holds neither"
    with pytest.raises(FrameError, match=said):
        scan_frames(tmp_path)


def test_images_of_shards_are_videos_for_extract_and_for_tokenize(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    numbered = {f"{n:05d}.png": image(n) for n in range(8)}
    write_shard(shards / "a.tar", {"__key__": "fish/one", **numbered, "json": b'{"caption": "c"}'})
    write_shard(
        shards / "b.tar",
        *({"__key__": f"two_{n:04d}", "jpg": image(100 + n, kind="JPEG")} for n in range(4)),
        {"__key__": "note", "txt": b"no image"},
    )
    write_shard(
        shards / "c.tar", *({"__key__": f"two_{n:04d}", "png": image(100 + n)} for n in range(4, 8))
    )
    result = extract([shards], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    assert first_frames(tmp_path / "frames") == {"train/fish-one": 0, "train/two": 100}
    assert "note: holds neither a video nor an image" in result.output
    found = scan_frames(shards)
    assert sorted((v.name, v.split, len(v.frames)) for v in found.videos) == [
        ("fish/one", "train", 8),
        ("two", "train", 8),
    ]
    (rejected,) = found.rejected
    assert rejected.reason == "holds neither a video nor an image"
    assert rejected.name.endswith("b.tar: note")
    times = extract([shards], tmp_path / "no", "--set", "extract.fps=5")
    assert times.exit_code == 1 and "extract.fps and extract.filters need videos" in times.output


def test_what_is_cut_or_not_used_of_images_in_shards_is_said(tmp_path: Path) -> None:
    numbered = {f"{n:05d}.png": image(n) for n in range(8)}
    write_shard(
        tmp_path / "shards" / "a.tar",
        {"__key__": "gap", **{k: v for k, v in numbered.items() if k != "00004.png"}},
        {"__key__": "whole", **numbered},
        {"__key__": "film", "mkv": film(), **numbered},
        {"__key__": "cover", "mkv": film(), "png": image(1)},
    )
    result = extract([tmp_path / "shards"], tmp_path / "frames")
    assert result.exit_code == 0, result.output
    why = "frame numbers jump by 2, and a jump ends a video"
    assert f"\ngap: {why}" in result.output and "(and 1 more videos alike" in result.output
    assert "a.tar: film: holds 8 images beside its video, which alone is kept" in result.output
    assert "5 videos in;" in result.output and result.output.endswith("rejected 1\n")
    footage = look_at_videos([tmp_path / "shards"], ExtractConfig(size=32), tmp_path / "scratch")
    (note,) = footage.notes
    assert note.startswith(f"gap: {why}") and note.endswith("(and 1 more videos alike)")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test/0.tar", "test"),
        ("test-0.tar", "test"),
        ("val.tar", "train"),
        ("testing/0.tar", "train"),
    ],
)
def test_the_split_of_images_in_shards_is_that_of_their_tar(
    tmp_path: Path, name: str, split: str
) -> None:
    write_shard(tmp_path / name, {"__key__": "v", "0.png": image(0), "1.png": image(1)})
    (video,) = scan_frames(tmp_path).videos
    assert video.split == split


def test_a_clip_of_ours_among_images_of_others_is_refused(tmp_path: Path) -> None:
    ours = {"split": "train", "frames": ["v/v_0.png"]}
    write_shard(
        tmp_path / "a.tar",
        {"__key__": "a", "0.png": image(0)},
        {"__key__": "b", "0.png": image(0), "json": json.dumps(ours).encode()},
    )
    with pytest.raises(FrameError, match=r"a\.tar: b\.json is of a clip, but not all before it is"):
        scan_frames(tmp_path)


def entry(name: str, **fields: object) -> bytes:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (entry("../../x.mp4"), "leads out of the tar; refused"),
        (entry("/etc/x.mp4"), "leads out of the tar; refused"),
        (entry("x.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is no plain file"),
        (entry("x.mp4", type=tarfile.FIFOTYPE), "is no plain file"),
        (entry("x.mp4", size=1 << 40), "claims bytes that the tar does not have|damaged"),
        (entry("000000002.cls"), "is there twice; refused"),
        (entry("x.__key__"), "webdataset keeps for itself"),
        (b"\1" * 512, "damaged, or no uncompressed tar"),
    ],
)
def test_a_broken_shard_is_named_and_may_be_skipped(
    tmp_path: Path, added: bytes, message: str
) -> None:
    shards = published(tmp_path / "shards")
    broken = shards / "00000.tar"
    with tarfile.open(broken) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512
    broken.write_bytes(broken.read_bytes()[:end] + added + bytes(1024))
    result = extract([shards], tmp_path / "frames")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "00000.tar" in line and "give --skip-broken" in line
    assert any(part in line for part in message.split("|")), line
    assert not (tmp_path / "frames").exists()
    result = extract([shards], tmp_path / "frames", "--skip-broken")
    assert result.exit_code == 0, result.output
    assert "1 broken tar is used up to the damage: 00000.tar\nrejected 00000.tar: " in result.output
    # What lies before the break is used, but for a sample that was not complete.
    assert first_frames(tmp_path / "frames").keys() >= {
        "train/00000-000000001",
        "train/00001-000000001",
    }


def test_a_missing_shard_is_named_before_others_are_read_and_may_be_skipped(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "a.tar", {"__key__": "one", "mkv": film()})
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    result = extract([tmp_path / "{a..d}.tar"], tmp_path / "frames")
    assert result.exit_code == 1
    gone = f"{tmp_path}/c.tar", f"{tmp_path}/d.tar"
    said = f"{gone[0]} is missing. Broken, too: {gone[1]}. To go on without them, give"
    assert result.output.startswith(f"Error: {said}")
    result = extract([tmp_path / "{a..d}.tar"], tmp_path / "frames", "--skip-broken")
    assert result.exit_code == 0, result.output
    assert f"2 broken tars are left out: {gone[0]}, {gone[1]}\n" in result.output
    assert "1 broken tar is used up to the damage: b.tar\n" in result.output


def test_all_broken_shards_are_named_at_once(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.tar").write_bytes(b"no tar" * 200)
    write_shard(tmp_path / "a.tar", {"__key__": "one", "mkv": film()})
    result = extract([tmp_path], tmp_path / "frames")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    names = "1.tar, 2.tar, 3.tar, 4.tar, 5.tar and 2 more"
    assert f" Broken, too: {names}. To go on without them, give --skip-broken." in line
    result = extract([tmp_path], tmp_path / "frames", "--skip-broken")
    names = "0.tar, 1.tar, 2.tar, 3.tar, 4.tar and 3 more"
    assert f"8 broken tars are used up to the damage: {names}\n" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.tar"], "gone.tar does not exist"),
        (["{0..9999999}.tar"], "names more than 1,000,000 tars"),
        (["here", "here/a.tar"], "here is a folder; give one folder, or tars, but not both"),
        (["here/a.mp4"], "a.mp4 is neither a folder nor a .tar"),
    ],
)
def test_what_names_no_videos_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for name in ("a.tar", "a.mp4"):
        Path("here", name).touch()
    with pytest.raises(FrameError, match=message):
        expand(words)


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path) -> None:
    result = extract([""], tmp_path / "frames")
    assert result.exit_code == 2
    assert "Invalid value for '--videos': an empty name is given." in result.output


def test_a_name_with_braces_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a{b.tar").touch()
    Path("a{b,c}").mkdir()
    for name in ("a{b.tar", "a{b,c}"):
        assert expand([name]) == [Path(name)]
    assert expand(["s3://b/{0..1}.tar"]) == ["s3://b/0.tar", "s3://b/1.tar"]
