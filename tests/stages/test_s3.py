"""Token stores in a bucket of a local S3 server: the same bytes, the same refusals."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.errors import FrameError, StorageError
from pipeline.storage import bucket as bucket_module
from pipeline.storage.bucket import Bucket
from pipeline.storage.tars import Member, add, new_tar, read_members, read_samples
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tests.stages.test_mended_frames import change_videos
from tests.stages.test_shards import extract, first_frames, published

URL = "s3://tokens/some/store"


pytestmark = pytest.mark.usefixtures("bucket")


def objects(bucket: Bucket) -> dict[str, bytes]:
    names = [item["path"] for chunk in bucket._store.list() for item in chunk]
    return {name: bucket.read(name) for name in names}


def tokens(*words: object) -> Result:
    return CliRunner().invoke(cli, ["tokens", *map(str, words)])


@pytest.mark.slow
def test_tokens_in_a_bucket_are_the_same_and_train_the_same_model(
    flow: Flow, bucket: Bucket
) -> None:
    assert f"{URL}: 138 train, 42 test windows; encoded 180 now" in flow.ok("tokenize", out=URL)
    assert objects(bucket) == content(flow.root / "tokens")
    assert "nothing to do" in flow.ok("tokenize", out=URL)
    flow.ok("train", "--tokens", URL, out="remote")
    model = "model.safetensors"
    assert (flow.root / "remote" / model).read_bytes() == (flow.root / "run" / model).read_bytes()
    here, there = tokens("info", flow.root / "tokens"), tokens("info", URL)
    assert there.output.replace(URL, "") == here.output.replace(str(flow.root / "tokens"), "")
    assert "shards are as they were written" in tokens("verify", URL).output


def test_samples_and_imports_may_lie_there_too(flow: Flow, bucket: Bucket) -> None:
    flow.ok("sample", out=URL)
    assert objects(bucket) == content(flow.root / "samples")
    ids = flow.root / "ids.npy"
    assert tokens("export", URL, "--out", ids).exit_code == 0
    other = "s3://tokens/imported"
    assert tokens("import", ids, "--codebook-size", 24, "--out", other).exit_code == 0
    assert (TokenStore(other).read("train") == TokenStore(URL).read("sample")).all()


@pytest.mark.slow
def test_every_command_reads_tokens_from_there(flow: Flow, bucket: Bucket) -> None:
    flow.ok("tokenize", out=URL)
    samples = "s3://tokens/samples"
    flow.ok("sample", out=samples)
    for out, store in (("videos", flow.root / "samples"), ("remote", samples)):
        words = flow.arguments("decode", out=out)
        words[words.index("--tokens") + 1] = str(store)
        assert CliRunner().invoke(cli, words).exit_code == 0
    assert content(flow.root / "videos") == content(flow.root / "remote")
    keep = ("--set", "sample.keep=[0]", "--split", "train")
    flow.ok("sample", "--given", str(flow.root / "tokens"), *keep, out="here")
    flow.ok("sample", "--given", URL, *keep, out="there")
    assert content(flow.root / "here") == content(flow.root / "there")
    for stage, name in (("evaluate", "metrics.json"), ("report", "report.html")):
        made = []
        for tokens, drawn in ((flow.root / "tokens", flow.root / "samples"), (URL, samples)):
            words = [stage, "--tokens", tokens, "--samples", drawn, "--run", flow.root / "run"]
            words += ["--params", flow.root / "params.yaml", "--out", flow.root / name]
            result = CliRunner().invoke(cli, list(map(str, words)))
            assert result.exit_code == 0, result.output
            made.append((flow.root / name).read_bytes())
        assert made[0] == made[1]


FRAMES = "s3://tokens/frames"


def upload(folder: Path, url: str) -> Bucket:
    bucket = Bucket(url)
    for name, data in content(folder).items():
        bucket.write(name, data)
    return bucket


@pytest.mark.slow
def test_frames_in_tars_of_a_bucket_make_the_same_tokens_and_tokenizer(flow: Flow) -> None:
    flow.ok("extract", "--format", "webdataset", out="tars")
    bucket = upload(flow.root / "tars", FRAMES)
    flow.ok("tokenize", "--frames", str(flow.root / "tars"), out="here")
    pages = []
    for frames in (flow.root / "tars", FRAMES):
        page = flow.root / "report.html"
        words = ["report", "--frames", frames, "--tokens", flow.root / "here", "--out", page]
        assert CliRunner().invoke(cli, list(map(str, words))).exit_code == 0
        pages.append(page.read_text())
    assert "given, cut into clips" in pages[0]
    assert pages[0] == pages[1]
    bucket.write("deeper/1.png", b"no tar")
    said = flow.ok("tokenize", "--frames", FRAMES, "--workers", "1", out="there")
    assert f"rejected {FRAMES}/deeper/1.png: beside tars" in said
    assert content(flow.root / "here") == content(flow.root / "there")
    broken = flow.root / "there" / "train.zarr" / "c" / "1" / "0" / "0" / "0"
    broken.unlink()
    given = ("--frames", FRAMES, "--tokenizer", flow.root / "tokenizer.safetensors")
    assert tokens("repair", flow.root / "there", *given, "--device", "cpu").exit_code == 0
    assert content(flow.root / "here") == content(flow.root / "there")
    for out, frames in (("fit-here", str(flow.root / "tars")), ("fit-there", FRAMES)):
        flow.ok("fit-tokenizer", "--frames", frames, out=out)
    made = [flow.root / out / "tokenizer.safetensors" for out in ("fit-here", "fit-there")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_videos_are_extracted_out_of_tars_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    published(tmp_path / "shards")
    for tar in (tmp_path / "shards").glob("*.tar"):
        bucket.write(f"deep/{tar.name}", tar.read_bytes())
    bucket.write("deep/notes.txt", b"no tar")
    assert extract([tmp_path / "shards"], tmp_path / "here").exit_code == 0
    for name, place in (("below", URL), ("named", f"{URL}/deep/{{00000..00001}}.tar")):
        result = extract([place], tmp_path / name)
        assert result.exit_code == 0, result.output
        assert first_frames(tmp_path / name) == first_frames(tmp_path / "here")
    result = extract([f"{URL}/gone.tar"], tmp_path / "gone")
    assert result.exit_code == 1 and f"{URL}/gone.tar" in result.output, result.output


def test_a_tar_of_small_files_is_looked_through_in_one_request(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:04d}" for number in range(300)]
    with new_tar(tmp_path / "small.tar") as tar:
        for name in names:
            add(tar, name, "png", bytes(5000))
    bucket.write("small.tar", (tmp_path / "small.tar").read_bytes())
    read_parts, asked = Bucket.read_parts, []

    def counting(self: Bucket, *request: Any) -> list[bytes]:
        asked.append(request)
        return read_parts(self, *request)

    monkeypatch.setattr(Bucket, "read_parts", counting)
    samples = read_samples(bucket.place("small.tar"), FrameError)
    assert [key for key, _ in samples] == names
    assert len(asked) == 1


def test_a_place_is_named_to_the_letter(bucket: Bucket) -> None:
    odd = Bucket(f"{URL}/a#b?c%20d e")
    odd.write("x", b"1")
    assert Bucket(f"{URL}/a").names() == []
    assert [name.rpartition("/")[2] for name in bucket.below()] == ["x"]
    assert odd.read("x") == b"1"


def test_frames_of_a_bucket_that_cannot_be_read_are_named(flow: Flow) -> None:
    line = flow.refused("tokenize", "--frames", FRAMES, out="there")
    assert f"{FRAMES} holds no video: 0 files" in line
    assert "in a bucket only tars are read" in line
    flow.ok("extract", "--format", "webdataset", out="tars")
    bucket = upload(flow.root / "tars", FRAMES)
    name = next(name for name in bucket.below() if name.startswith("train"))
    tar = bucket.read(name)
    bucket.write(name, tar[: len(tar) // 2])
    assert f"{FRAMES}/{name}" in flow.refused("tokenize", "--frames", FRAMES, out="there")
    bucket.write(name, tar)
    spans = ((1024, 512), (0, 512), (9, 0))
    members = [Member(f"{FRAMES}/{name}", "x", *span) for span in spans]
    assert read_members(members) == [tar[1024:1536], tar[:512], b""]
    with pytest.raises(StorageError, match=rf"{name} cannot be read"):
        Member(f"{FRAMES}/{name}", "x", len(tar) + 512, 512).read()
    bucket.remove(name)
    with pytest.raises(FileNotFoundError):
        read_members(members)


@pytest.mark.slow
def test_stopped_and_run_again_the_objects_are_the_same(
    flow: Flow, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Bucket.write, 0

    def dying(self: Bucket, name: str, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > 10:
            raise StorageError("the network is gone")
        write(self, name, data)

    monkeypatch.setattr(Bucket, "write", dying)
    assert "the network is gone" in flow.refused("tokenize", out=URL)
    monkeypatch.setattr(Bucket, "write", write)
    assert "is unfinished" in flow.refused("train", "--tokens", URL, out="remote")
    flow.ok("tokenize", out=URL)
    assert objects(bucket) == content(flow.root / "tokens")


@pytest.mark.slow
def test_a_store_there_is_brought_up_to_date(
    flow: Flow, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.ok("tokenize", out=URL)
    change_videos(flow)
    flow.ok("tokenize", out="fresh")
    assert "Give --update" in flow.refused("tokenize", out=URL)
    move, moved = Bucket.move, 0

    def dying(self: Bucket, name: str, target: str) -> None:
        nonlocal moved
        moved += 1
        if moved > 7:
            raise StorageError("the network is gone")
        move(self, name, target)

    monkeypatch.setattr(Bucket, "move", dying)
    assert "the network is gone" in flow.refused("tokenize", "--update", out=URL)
    monkeypatch.setattr(Bucket, "move", move)
    assert "store.json is missing; run the command" in flow.refused(
        "train", "--tokens", URL, out="remote"
    )
    assert "nothing to do" in flow.ok("tokenize", "--update", out=URL)
    assert objects(bucket) == content(flow.root / "fresh")


@pytest.mark.slow
def test_damage_is_named_and_repaired(flow: Flow, bucket: Bucket) -> None:
    flow.ok("tokenize", out=URL)
    before = objects(bucket)
    bucket.remove("train.zarr/c/2/0/0/0")
    bucket.write("test.zarr/c/0/0/0/0", b"other")
    line = flow.refused("train", "--tokens", URL, out="remote")
    assert f"{URL}/test.zarr/c/0/0/0/0 is damaged: bytes is 5" in line
    result = tokens("verify", URL)
    assert result.exit_code == 1
    assert f"{URL}/train.zarr/c/2/0/0/0 is missing or empty" in result.output
    assert "2 things are wrong" in result.output
    given = ("--frames", flow.root / "frames", "--tokenizer", flow.root / "tokenizer.safetensors")
    assert tokens("repair", URL, *given, "--device", "cpu").exit_code == 0
    assert objects(bucket) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store.json", "manifest/", "train.zarr/c/1/0/0/0"])
def test_a_network_that_fails_is_no_damage_and_nothing_is_deleted(
    flow: Flow, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flow.ok("tokenize", out=URL)
    before, read = objects(bucket), Bucket.read

    def failing(self: Bucket, asked: str) -> bytes:
        if asked.startswith(name):
            raise StorageError("the network is gone")
        return read(self, asked)

    monkeypatch.setattr(Bucket, "read", failing)
    assert "the network is gone" in flow.refused("tokenize", "--overwrite", out=URL)
    bucket.remove("store.json")
    if name != "store.json":
        assert "the network is gone" in flow.refused("tokenize", out=URL)
    monkeypatch.setattr(Bucket, "read", read)
    assert "nothing to do" in flow.ok("tokenize", out=URL)
    assert objects(bucket) == before


@pytest.mark.slow
def test_another_store_is_refused_by_name_and_overwritten_only_when_asked(
    flow: Flow, bucket: Bucket
) -> None:
    bucket.write("notes.txt", b"mine")
    line = flow.refused("tokenize", "--overwrite", out=URL)
    assert f"{URL} holds notes.txt but no store.json" in line
    bucket.remove("notes.txt")
    flow.ok("tokenize", "--set", "tokenize.hop=3", out=URL)
    assert "hop = 3, not 2" in flow.refused("tokenize", out=URL)
    flow.ok("tokenize", "--overwrite", out=URL)
    assert objects(bucket) == content(flow.root / "tokens")


def test_two_runs_cannot_write_to_one_place(bucket: Bucket) -> None:
    with bucket.lock():
        time.sleep(0.3)  # Renewed meanwhile.
        with (
            pytest.raises(StorageError, match="is being written by another process"),
            Bucket(URL).lock(),
        ):
            pass
        with Bucket(URL).lock(shared=True):
            Bucket(URL).write("a", b"1")
        assert bucket.names() == ["a"]
    with Bucket(URL).lock():
        pass
    assert set(objects(bucket)) == {"a"}


def test_the_lock_of_a_dead_run_is_taken_over(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.write(".lock", b"of a run that was killed")
    with bucket.lock():
        pass
    assert "waiting 0 seconds for a sign of life" in capsys.readouterr().err
    assert not objects(bucket)


def test_a_run_that_lost_its_lock_writes_no_more(bucket: Bucket) -> None:
    with bucket.lock():
        bucket._store.put(".lock", b"of a run that took over")
        time.sleep(0.3)
        with pytest.raises(StorageError, match="was taken over by another run"):
            bucket.write("a", b"1")
    assert objects(bucket) == {".lock": b"of a run that took over"}


def test_a_server_without_conditions_is_used_without_a_lock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    bucket = Bucket(URL)
    with bucket.lock(), bucket.lock():
        bucket.write("a", b"1")
    assert "without a lock, as AWS_CONDITIONAL_PUT says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "write s3://bucket/prefix"),
        ("s3:///tokens", "write s3://bucket/prefix"),
        ("s3://tokens/../x", "write s3://bucket/prefix"),
        ("s3://tokens/a//b", "write s3://bucket/prefix"),
        ("s3://tokens/none", "store.json is missing, so s3://tokens/none is no token store"),
        ("s3://nowhere/none", "cannot be listed: NoSuchBucket"),
    ],
)
def test_a_place_without_a_store_is_one_clear_line(flow: Flow, url: str, message: str) -> None:
    assert message in flow.refused("train", "--tokens", url, out="remote")


def test_what_the_server_refuses_is_one_clear_line(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = flow.refused("tokenize", out="s3://nowhere/tokens")
    assert "s3://nowhere/tokens is in no bucket that exists" in line
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket_module, "RETRIES", 0)
    line = flow.refused("train", "--tokens", URL, out="remote")
    assert f"{URL}/store.json cannot be read: HTTP error: error sending request; check" in line


def test_without_the_extra_it_says_what_to_install(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    line = flow.refused("train", "--tokens", URL, out="remote")
    assert line == f"Error: {URL} needs the extra `s3`: pip install 'mebt[s3]'."
