"""Tars of frames that are named one by one: by every command that reads frames, broken ones too."""

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.errors import FrameError
from pipeline.frames.given import Tars, expand, folder_of, named_frames
from pipeline.frames.scan import scan_frames
from pipeline.storage.bucket import Bucket
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tests.stages.test_shards import entry, image, write_shard

VIDEOS = ("fish", "bird", "crab")


@pytest.fixture
def shards(flow: Flow) -> Path:
    """Three tars of a video each, the last for the test."""
    for number, name in enumerate(VIDEOS):
        images = {f"{n:05d}.png": image(n + 20 * number, 16) for n in range(8)}
        tar = f"{'test' if name == 'crab' else 'train'}-{number}.tar"
        write_shard(flow.root / "shards" / tar, {"__key__": name, **images, "cls": name.encode()})
    return flow.root / "shards"


def break_off(tar: Path) -> bytes:
    """Takes the end of a tar away; returns what it was."""
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2 // 512 * 512 + 100])
    return data


def tokenize(flow: Flow, frames: object, out: str, *more: str) -> str:
    words = flow.arguments("tokenize", *more, out=out)
    words[words.index("--frames") + 1] = str(frames)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(flow: Flow, frames: object, *more: str, code: int = 1, out: str = "made") -> str:
    words = flow.arguments("tokenize", *more, out=out)
    words[words.index("--frames") + 1] = str(frames)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


def test_a_pattern_makes_the_tokens_that_the_folder_makes(flow: Flow, shards: Path) -> None:
    tokenize(flow, shards, "whole")
    tokenize(flow, shards / "{train-0,train-1,test-2}.tar", "named")
    assert content(flow.root / "named") == content(flow.root / "whole")
    tokenize(flow, shards / "train-1.tar", "one", "--labels", "beside")
    plan = TokenStore(flow.root / "one").plan().to_pylist()
    assert {(row["video"], row["label"]) for row in plan} == {("bird", "bird")}


def test_what_lies_beside_named_tars_of_ours_is_taken(flow: Flow) -> None:
    flow.ok("extract", "--format", "webdataset", out="tars")
    tars = flow.root / "tars"
    names = sorted(path.stem for path in tars.glob("*.tar"))
    assert len(names) == 2
    pattern = tars / f"{{{','.join(names)}}}.tar"
    videos = [video.name for video in scan_frames(tars).videos]
    about = {"video": videos, "label": ["x"] * len(videos)}
    pq.write_table(pa.table(about), tars / "videos.parquet")
    for frames, out in ((tars, "whole"), (pattern, "named")):
        said = tokenize(flow, frames, out, "--labels", "beside")
        assert f"videos.parquet: 1 label of {len(videos)} of {len(videos)} videos" in said
    assert content(flow.root / "named") == content(flow.root / "whole")
    assert TokenStore(flow.root / "named").info.fps == 25


def test_nothing_lies_beside_tars_of_several_folders(flow: Flow, shards: Path) -> None:
    (shards / "more").mkdir()
    shutil.move(shards / "test-2.tar", shards / "more/test-2.tar")
    pattern = shards / "{train-0,more/test-2}.tar"
    assert folder_of(named_frames(str(pattern))) is None
    assert "has no states.parquet" in refused(flow, pattern, "--states", "beside")
    tokenize(flow, pattern, "made", "--labels", "beside")
    assert TokenStore(flow.root / "made").label_names == ["crab", "fish"]


def test_every_command_that_reads_frames_takes_them(flow: Flow, shards: Path) -> None:
    frames = ("--frames", str(shards / "{train-0,train-1,test-2}.tar"))
    tokenize(flow, shards, "tokens", "--overwrite")
    root, params = flow.root, ("--params", str(flow.root / "params.yaml"))
    tokens, tokenizer = str(root / "tokens"), ("--tokenizer", str(root / "tokenizer.safetensors"))
    store = content(root / "tokens")
    TokenStore(root / "tokens").shard_file("train", 0).unlink()
    measured = ("--set", "evaluate.num_videos=2", "--out", str(root / "metrics.json"))
    for words in (
        ("tokens", "repair", tokens, *frames, *tokenizer, "--device", "cpu"),
        ("fit-tokenizer", *frames, "--out", str(root / "fitted"), *params),
        ("reconstruct", *frames, *tokenizer, "--out", str(root / "kept"), "--limit", "1", *params),
        ("report", *frames, "--tokens", tokens, *tokenizer, "--out", str(root / "report.html")),
        ("evaluate", "--tokens", tokens, *frames, *tokenizer, *params, *measured),
        ("check", *frames, *params, "--json", str(root / "check.json")),
    ):
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == 0, f"{words}\n{result.output}{result.exception!r}"
    assert content(root / "tokens") == store
    assert "psnr" in json.loads((root / "metrics.json").read_text("utf-8"))["metrics"]
    keep = ("reconstruct", *frames, *tokenizer, "--out", str(shards), *params)
    assert "holds" in CliRunner().invoke(cli, list(keep)).output


@pytest.mark.parametrize("named", [True, False], ids=["named", "folder"])
def test_a_broken_tar_is_left_out_as_if_it_were_not_there(
    flow: Flow, shards: Path, named: bool
) -> None:
    place = shards / "{train-0,train-1,test-2}.tar" if named else shards
    whole = break_off(shards / "train-1.tar")
    line = refused(flow, place)
    assert "train-1.tar is damaged" in line and "give --skip-broken" in line
    assert not (flow.root / "made").exists()
    said = tokenize(flow, place, "made", "--skip-broken")
    assert f"1 broken tar is left out: {shards / 'train-1.tar'}\n" in said
    assert f"rejected {shards / 'train-1.tar'}: {shards / 'train-1.tar'} is damaged" in said
    tokenize(flow, shards / "{train-0,test-2}.tar", "without")
    assert content(flow.root / "made") == content(flow.root / "without")
    assert "nothing to do" in tokenize(flow, place, "made", "--skip-broken")
    # Stopped in between, and broken elsewhere by then: the rest is made all the same.
    (flow.root / "made/manifest/train-00000.parquet").unlink()
    (shards / "train-1.tar").write_bytes(whole[:2000])
    assert "encoded 3 now" in tokenize(flow, place, "made", "--skip-broken")
    assert content(flow.root / "made") == content(flow.root / "without")
    assert "give --skip-broken" in refused(flow, place)
    # Mended, its video is a new one.
    (shards / "train-1.tar").write_bytes(whole)
    assert "1 video is new (bird in train)" in refused(flow, place, "--skip-broken")
    assert "took over 6, encoded 3 now" in tokenize(flow, place, "made", "--update")
    tokenize(flow, shards, "fresh")
    assert content(flow.root / "made") == content(flow.root / "fresh")


def test_who_reads_frames_of_a_store_names_the_tar_that_broke(flow: Flow, shards: Path) -> None:
    tokenize(flow, shards, "tokens", "--overwrite")
    break_off(shards / "train-1.tar")
    words = ("tokens", "repair", str(flow.root / "tokens"), "--frames", str(shards))
    words = (*words, "--tokenizer", str(flow.root / "tokenizer.safetensors"), "--device", "cpu")
    said = CliRunner().invoke(cli, list(words)).output
    assert "1 video is gone (bird in train). 1 broken tar is left out: " in said
    tokenize(flow, shards, "tokens", "--update", "--skip-broken")
    assert "whole" in CliRunner().invoke(cli, list(words)).output
    page = flow.root / "report.html"
    words = ("report", "--frames", str(shards), "--tokens", str(flow.root / "tokens"))
    assert CliRunner().invoke(cli, [*words, "--out", str(page)]).exit_code == 0
    assert "train-1.tar is damaged" in page.read_text("utf-8")
    fit = flow.arguments("fit-tokenizer", "--skip-broken")
    fit[fit.index("--frames") + 1] = str(shards)
    assert "1 broken tar is left out: " in CliRunner().invoke(cli, fit).output
    check = ["check", "--frames", str(shards), "--params", str(flow.root / "params.yaml")]
    assert "give --skip-broken" in CliRunner().invoke(cli, check).output
    assert "1 broken tar is left out: " in CliRunner().invoke(cli, [*check, "--skip-broken"]).output


@pytest.mark.parametrize(
    "added",
    [
        entry("../../x.png"),
        entry("/etc/x.png"),
        entry("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("x.png", type=tarfile.FIFOTYPE),
        entry("x.png", size=1 << 40),
        entry("bird.cls"),
        entry("x.__key__"),
        b"\1" * 512,
    ],
)
def test_a_hostile_tar_is_refused_or_left_out(shards: Path, added: bytes) -> None:
    tar = shards / "train-1.tar"
    with tarfile.open(tar) as file:
        end = file.getmembers()[-1].offset_data + 512
    tar.write_bytes(tar.read_bytes()[:end] + added + bytes(1024))
    frames = named_frames(str(shards / "{train-0,train-1}.tar"))
    with pytest.raises(FrameError, match=r"train-1\.tar.*To go on without it, give --skip-broken"):
        scan_frames(frames)
    found = scan_frames(frames, skip_broken=True)
    assert [video.name for video in found.videos] == ["fish"]
    assert [tar.name for tar in found.rejected] == [str(shards / "train-1.tar")]
    assert found.num_files == 9


def test_a_clip_of_ours_that_lies_is_broken_as_a_whole(tmp_path: Path) -> None:
    good = {"split": "train", "frames": ["v/v_0.png"]}
    samples = [{"__key__": f"000{n}", "0.png": image(n)} for n in range(2)]
    samples[0]["json"] = json.dumps(good).encode()
    samples[1]["json"] = json.dumps({**good, "frames": ["../v_0.png"]}).encode()
    write_shard(tmp_path / "lies.tar", *samples)
    write_shard(tmp_path / "good.tar", samples[0])
    found = scan_frames(tmp_path, skip_broken=True)
    assert [len(video.frames) for video in found.videos] == [1]
    assert "leads out of the folder" in found.rejected[0].reason


def test_what_is_no_broken_tar_is_not_skipped(flow: Flow, shards: Path) -> None:
    write_shard(shards / "texts.tar", {"__key__": "a", "txt": b"fish", "json": b"{}"})
    assert "texts.tar holds no image" in refused(flow, shards, "--skip-broken")
    (shards / "texts.tar").unlink()
    for tar in shards.glob("*.tar"):
        break_off(tar)
    others = f"{shards / 'train-0.tar'}, {shards / 'train-1.tar'}"
    line = refused(flow, shards)
    assert f" Broken, too: {others}. To go on without them, give --skip-broken." in line
    line = refused(flow, shards, "--skip-broken")
    assert "holds no video: 3 files, none usable; for example " in line and "is damaged" in line


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shards/gone.tar", "shards/gone.tar does not exist."),
        ("params.yaml", "params.yaml is neither a folder nor a .tar; give the folder it lies in."),
        ("nowhere", "nowhere does not exist."),
        ("", "an empty name is given."),
        ("{shards,frames}", "shards is a folder; give one folder, or tars, but not both."),
    ],
)
def test_what_names_no_frames_is_wrong_usage(
    flow: Flow, shards: Path, monkeypatch: pytest.MonkeyPatch, word: str, message: str
) -> None:
    monkeypatch.chdir(flow.root)
    assert f"Invalid value for '--frames': {message}" in refused(flow, word, code=2)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("{000..012}", 13),
        ("{7..-1..3}{,x}", 6),
        ("{a..c}{C..A..2}", 6),
        ("{{0..3}{a..c},x{1,2},}", 15),
        (r"\{0..99\}{0,1}\,{x}", 2),
    ],
)
def test_too_many_tars_are_refused_before_their_names_are_made(
    pattern: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"s3://bucket/v{pattern}.tar"
    monkeypatch.setattr("pipeline.frames.given.MAX_TARS", count)
    assert len(expand([word])) == count
    monkeypatch.setattr("pipeline.frames.given.MAX_TARS", count - 1)
    monkeypatch.setattr("pipeline.frames.given.braceexpand", pytest.fail)
    with pytest.raises(FrameError, match=f"tar names more than {count - 1} tars"):
        expand([word])


@pytest.mark.parametrize("name", ["x}{{0..9}", "x{0..9}}", "x{{0..9}"])
def test_braces_that_do_not_match_are_a_name(name: str) -> None:
    assert expand([f"s3://bucket/{name}.tar"]) == [f"s3://bucket/{name}.tar"]


def test_a_pattern_is_longer_than_a_name_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.tar").touch()
    word = f"{{{','.join(map(str, range(200)))},a,b}}.tar"
    assert expand([word])[-2:] == [Path("a.tar"), Path("b.tar")]
    deep = "{" * 2000 + "}" * 2000
    with pytest.raises(OSError, match="too long"):
        expand([deep])


def test_a_tar_of_a_pattern_that_is_missing_is_left_out_when_asked(
    flow: Flow, shards: Path
) -> None:
    gone, place = shards / "train-7.tar", shards / "{train-0,train-7,test-2}.tar"
    line = refused(flow, place)
    assert line == f"Error: {gone} is missing. To go on without it, give --skip-broken."
    said = tokenize(flow, place, "made", "--skip-broken")
    assert f"1 broken tar is left out: {gone}\n" in said
    tokenize(flow, shards / "{train-0,test-2}.tar", "without")
    assert content(flow.root / "made") == content(flow.root / "without")
    line = refused(flow, shards / "{x,y}.tar", "--skip-broken", code=2)
    assert f"{shards}/x.tar does not exist" in line


def test_tars_of_a_bucket_are_named_by_a_pattern(flow: Flow, shards: Path, bucket: Bucket) -> None:
    for tar in shards.glob("*.tar"):
        bucket.write(f"deep/{tar.name}", tar.read_bytes())
    url = f"{bucket.root}/deep"
    tokenize(flow, f"{url}/{{train-0,test-2}}.tar", "there")
    tokenize(flow, shards / "{train-0,test-2}.tar", "here")
    assert content(flow.root / "there") == content(flow.root / "here")
    assert "train-7.tar is missing" in refused(flow, f"{url}/train-{{0,7}}.tar")
    said = tokenize(flow, f"{url}/{{train-0,train-7,test-2}}.tar", "there", "--skip-broken")
    assert "1 broken tar is left out" in said and "nothing to do" in said


def test_the_folder_of_tars_is_the_one_that_all_lie_in() -> None:
    for tars, folder in (
        (("s3://b/x/0.tar", "s3://b/x/1.tar"), "s3://b/x"),
        (("s3://b/x/0.tar", "s3://b/y/1.tar"), None),
        ((Path("0.tar"), Path("1.tar")), Path()),
    ):
        assert folder_of(Tars("", tars)) == folder
    assert folder_of(Path("shards")) == Path("shards")
