"""Films in tars of others: read by whoever reads frames, as `extract` would make frames of them."""

import errno
import io
import json
import tarfile
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.errors import FrameError
from pipeline.frames.given import named_frames
from pipeline.frames.images import read_frames, read_images
from pipeline.frames.scan import Video
from pipeline.storage.bucket import Bucket
from pipeline.store.reader import TokenStore
from pipeline.video.films import find_frames
from pipeline.windows import encode
from stages.__main__ import cli
from tests.helpers.film import number_of, picture, write_film
from tests.helpers.small import Flow, content
from tests.pipeline.frames.test_films import fake
from tests.stages.test_named_tars import refused, tokenize
from tests.stages.test_shards import image, write_shard

KINDS = {
    "mp4": ("libx264", "mp4", {"bf": "2", "g": "6"}),
    "webm": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "mkv": ("ffv1", "matroska", {}),
    "avi": ("mpeg4", "avi", {}),
}
"""Of the last two only decoding tells how many frames there are."""


@pytest.fixture(autouse=True)
def no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """None but those that are asked for: they take a while to start."""
    monkeypatch.setattr("stages.tokenize.spare_cores", lambda *_: 0)


def film(kind: str = "mp4", first: int = 0, frames: int = 20, **more: Any) -> bytes:
    codec, container, options = KINDS[kind]
    file = io.BytesIO()
    pictures = (picture(first + number, 48, 32) for number in range(frames))
    write_film(file, pictures, codec, format=container, options=options, **more)
    return file.getvalue()


def damaged(data: bytes, number: int) -> bytes:
    """Takes what a packet of a film says; it is as long as before."""
    with av.open(io.BytesIO(data)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        assert packet.pos is not None
        start, stop = packet.pos, packet.pos + packet.size
    return data[:start] + bytes(stop - start) + data[stop:]


def tokens(store: Path) -> dict[str, bytes]:
    """Returns the tokens of all windows of each video, by its last word."""
    opened = TokenStore(store)
    found: dict[str, bytes] = {}
    for split in opened.splits:
        plan = opened.plan(split).to_pylist()
        for row, ids in zip(plan, opened.read(split), strict=True):
            name = row["video"].rpartition("-")[2]
            found[name] = found.get(name, b"") + np.asarray(ids).tobytes()
    return found


@pytest.mark.parametrize("as_stored", [False, True])
def test_tokens_are_those_of_the_frames_that_extract_makes(flow: Flow, as_stored: bool) -> None:
    def wide(stream: av.VideoStream) -> None:
        stream.sample_aspect_ratio = Fraction(2)

    samples = [{"__key__": kind, kind: film(kind, 10 * n)} for n, kind in enumerate(KINDS)]
    tar = write_shard(
        *(flow.root / "0.tar", *samples, {"__key__": "wide", "mp4": film(first=50, prepare=wide)})
    )
    stored = ("--as-stored",) if as_stored else ()
    words = ("extract", "--videos", str(tar), "--out", str(flow.root / "extracted"), *stored)
    values = ("--set", "extract.size=[32,48]", "--set", "extract.test_share=0")
    result = CliRunner().invoke(cli, [*words, *values])
    assert result.exit_code == 0, result.output
    tokenize(flow, flow.root / "extracted", "one", *stored)
    said = tokenize(flow, tar, "two", *stored, "--workers", "2")
    assert ("0-wide: stretched 2 times in width" in said) != as_stored
    one, two = (tokens(flow.root / name) for name in ("one", "two"))
    assert one == two and set(one) == {*KINDS, "wide"}
    assert len(set(one.values())) == 5  # They can be told apart.
    assert TokenStore(flow.root / "two").info.fps == TokenStore(flow.root / "one").info.fps == 25


def test_every_frame_is_found_by_its_number(tmp_path: Path) -> None:
    write_shard(tmp_path / "test" / "0.tar", {"__key__": "a/b", "MP4": film(first=7)})
    (video,) = find_frames(tmp_path / "test").videos
    assert (video.name, video.split) == ("0-a-b", "test")
    assert (len(video.frames), video.numbering) == (20, "")
    shown = [number_of(np.asarray(image)) for image in read_images(video.frames)]
    assert shown == list(range(7, 27))
    some = [video.frames[number] for number in (0, 0, 5, 19)]
    assert [number_of(np.asarray(image)) for image in read_images(some)] == [7, 7, 12, 26]
    assert read_frames(video.frames[2:4], size=(8, 4)).shape == (2, 8, 4, 3)


def test_what_lies_beside_films_goes_with_them(flow: Flow) -> None:
    about = json.dumps({"label": "fish", "caption": "a fish"}).encode()
    tar = write_shard(
        flow.root / "0.tar",
        {"__key__": "a", "json": about, "mp4": film()},
        {"__key__": "b", "mp4": film(), "cls": b"bird"},
        {"__key__": "c", "json": b"{", "mp4": film()},
    )
    states = flow.root / "states.csv"
    states.write_text("video,frame,turn\n" + "".join(f"0-a,{n},{n / 2}\n" for n in range(20)))
    more = ("--labels", "beside", "--captions", "beside", "--states", str(states))
    tokenize(flow, tar, "made", *more)
    store = TokenStore(flow.root / "made")
    rows = store.plan().to_pylist()
    assert {(r["video"], r["label"], r["caption"]) for r in rows} == {
        *(("0-a", "fish", "a fish"), ("0-b", "bird", None), ("0-c", None, None))
    }
    states_found = store.states("train", 0)
    assert states_found is not None
    of_a = {row["row"]: row["first_frame"] for row in rows if row["video"] == "0-a"}
    found = [row for row in states_found.to_pylist() if row["row"] in of_a]
    assert len(found) == 4 * len(of_a) > 0
    assert all(row["turn"] == [(of_a[row["row"]] + row["frame"]) / 2] for row in found)


def test_what_is_no_film_of_use_is_named_and_the_others_are_read(flow: Flow) -> None:
    good = film()
    images = {f"{number}.png": image(number) for number in range(3)}
    sound = io.BytesIO()
    with wave.open(sound, "wb") as audio:
        audio.setparams((1, 2, 8000, 0, "NONE", ""))
        audio.writeframes(bytes(4000))
    tar = write_shard(
        flow.root / "0.tar",
        {"__key__": "good", "mp4": good, **images},
        {"__key__": "cut", "mp4": good[: len(good) // 2]},
        {"__key__": "ends", "mkv": film("mkv")[:-3000]},
        {"__key__": "empty", "mp4": b""},
        {"__key__": "sound", "mp4": sound.getvalue()},
        {"__key__": "list", "mp4": b"#EXTM3U\n/etc/passwd\n"},
        {"__key__": "image", "mp4": image(0)},
        {"__key__": "two", "mp4": good, "webm": good},
        {"__key__": "none", "txt": b"none"},
    )
    with tarfile.open(tar, "a") as file:
        for name in (".mp4", "\udcff.mp4"):
            file.addfile(tarfile.TarInfo(name))
    rejected = find_frames(named_frames(str(tar))).rejected
    reasons = {item.name.rpartition(": ")[2].removeprefix("0-"): item.reason for item in rejected}
    assert all("0.tar: " in reasons[name] for name in ("cut", "empty", "sound", "list", "image"))
    for name, why in (
        ("good", "holds 3 images beside its video, which alone is kept"),
        ("cut", "cannot be decoded: damaged"),
        ("ends", "breaks off after"),
        ("empty", "cannot be decoded"),
        ("sound", "holds no video"),
        ("list", "cannot be decoded"),
        ("image", "is an image"),
        ("two", "holds 2 videos"),
        ("none", "holds neither a video nor an image"),
        (".mp4", "there is no key"),
        ("\\udcff", "its name is not UTF-8"),
    ):
        assert why in reasons.pop(name), name
    assert not reasons
    said = tokenize(flow, tar, "made")
    assert {row["video"] for row in TokenStore(flow.root / "made").plan().to_pylist()} == {"0-good"}
    assert "rejected 6 more" in said


def test_tars_without_a_film_of_use_say_why(flow: Flow) -> None:
    tar = write_shard(flow.root / "0.tar", {"__key__": "two", "mp4": film(), "webm": film("webm")})
    assert "0.tar holds no image (.png" in refused(flow, tar)
    assert "0.tar: two holds 2 videos." in refused(flow, tar)
    write_shard(tar, {"__key__": "one", "mp4": b"no film"})
    line = refused(flow, tar)
    assert "none usable; for example 0-one: " in line and "0.tar: one.mp4 cannot be decoded" in line


def test_films_of_one_key_stay_apart(tmp_path: Path) -> None:
    for name, first, frames in (("a/0", 0, 8), ("a/1", 100, 12), ("b/1", 200, 8)):
        write_shard(tmp_path / f"{name}.tar", {"__key__": "k", "mp4": film("mp4", first, frames)})
    numbered = {f"{number:05d}.png": image(number) for number in range(20)}
    write_shard(tmp_path / "c" / "2.tar", {"__key__": "k", **numbered})
    found = find_frames(tmp_path)
    lengths = {video.name: len(video.frames) for video in found.videos}
    assert not found.rejected and found.rate() is None
    assert lengths == {"k": 20, "0-k": 8, "1-k": 12, "1-k/1-k": 8}
    for video in found.videos:
        shown = [number_of(np.asarray(image)) for image in read_images(video.frames)]
        assert shown == list(range(shown[0], shown[0] + len(shown)))


@pytest.mark.slow
def test_a_damaged_film_is_named_once_and_mended_later(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "PIECE_BYTES", 3 * 16 * 16 * 8)
    whole = {"__key__": "whole", "mp4": film("mp4", 40, 24)}
    victim = {"__key__": "victim", "mp4": film("mp4", 0, 24)}
    tar = flow.root / "0.tar"
    write_shard(tar, whole, {**victim, "mp4": damaged(victim["mp4"], 12)})
    one = ("--set", "tokenize.shard_windows=8", "--set", "tokenize.chunk_windows=8")
    line = refused(flow, tar, *one)
    assert line.startswith("Error: a frame cannot be used: ")
    assert line.count("0.tar: victim.mp4 is damaged at frame") == 1
    again = refused(flow, tar, *one, "--verify-frames", out="other")
    assert "0.tar: victim.mp4 is damaged at frame" in again and "Nothing was made" in again
    left = TokenStore(flow.root / "made", allow_partial=True).missing()
    assert 0 < len(left) < 3
    write_shard(tar, whole, victim)
    said = tokenize(flow, tar, "made", *one)
    assert "took over" in said and "24 frames differ" in said
    tokenize(flow, tar, "fresh", *one)
    assert content(flow.root / "made") == content(flow.root / "fresh")


def test_a_film_repainted_to_the_same_bytes_is_another(flow: Flow) -> None:
    tar = write_shard(flow.root / "0.tar", {"__key__": "a", "mp4": film()})
    tokenize(flow, tar, "made")
    data = tar.read_bytes()
    write_shard(tar, {"__key__": "a", "mp4": damaged(film(), 19)})
    assert len(tar.read_bytes()) == len(data)
    assert "20 frames differ" in refused(flow, tar)


@pytest.mark.slow
def test_films_of_a_bucket_and_broken_tars(flow: Flow, bucket: Bucket) -> None:
    for number in range(2):
        path = flow.root / "here" / f"{number}.tar"
        write_shard(path, {"__key__": f"v{number}", "mp4": film("mp4", 20 * number)})
        bucket.write(f"shards/{number}.tar", path.read_bytes())
    tokenize(flow, flow.root / "here", "one")
    tokenize(flow, f"{bucket.root}/shards/{{0..1}}.tar", "two")
    assert content(flow.root / "one") == content(flow.root / "two")
    bucket.write("shards/1.tar", path.read_bytes()[:3000])
    assert "give --skip-broken" in refused(flow, f"{bucket.root}/shards", out="three")
    tokenize(flow, f"{bucket.root}/shards", "three", "--skip-broken")
    assert {r["video"] for r in TokenStore(flow.root / "three").plan().to_pylist()} == {"0-v0"}


@pytest.mark.slow
def test_every_command_that_reads_frames_reads_films(flow: Flow) -> None:
    shards = flow.root / "shards"
    for split in ("train", "test"):
        write_shard(shards / f"{split}.tar", {"__key__": split, "mp4": film()})
    root, frames = flow.root, ("--frames", str(shards))
    params = ("--params", str(root / "params.yaml"))
    tokenize(flow, shards, "tokens", "--overwrite")
    store = content(root / "tokens")
    TokenStore(root / "tokens").shard_file("train", 0).unlink()
    tokenizer = ("--tokenizer", str(root / "tokenizer.safetensors"))
    at = ("--tokens", str(root / "tokens"))
    for words in (
        ("tokens", "repair", str(root / "tokens"), *frames, *tokenizer, "--device", "cpu"),
        ("fit-tokenizer", *frames, "--out", str(root / "fitted"), *params),
        ("reconstruct", *frames, *tokenizer, "--out", str(root / "kept"), "--limit", "1", *params),
        ("report", *frames, *at, *tokenizer, "--out", str(root / "report.html")),
        ("evaluate", *at, *frames, *tokenizer, *params, "--out", str(root / "metrics.json")),
        ("check", *frames, *params, *tokenizer, "--json", str(root / "check.json")),
    ):
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == 0, f"{words}\n{result.output}{result.exception!r}"
    assert content(root / "tokens") == store
    assert "psnr" in json.loads((root / "metrics.json").read_text("utf-8"))["metrics"]
    about = json.loads((root / "check.json").read_text("utf-8"))["footage"]
    assert (about["videos"], about["rates"]) == (2, [25.0])


def test_more_frames_than_can_be_listed_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.frames.films.MAX_FRAMES", 12)
    for name, frames in (("short", 12), ("long", 13)):
        write_shard(tmp_path / f"{name}.tar", {"__key__": name, "mp4": film(frames=frames)})
    found = find_frames(tmp_path)
    assert [video.name for video in found.videos] == ["short-short"]
    (rejected,) = found.rejected
    assert rejected.name == "long-long" and "13 frames are more than 12; `mebt" in rejected.reason


def test_rates_that_differ_are_said_and_the_middle_one_is_taken(tmp_path: Path) -> None:
    for rate, frames in ((24, 20), (25, 20), (50, 3)):
        made = film(rate=rate, frames=frames)
        write_shard(tmp_path / f"{rate}.tar", {"__key__": f"v{rate}", "mp4": made})
    found = find_frames(tmp_path)
    assert found.rate() == 25 and found.rate(at_least=20) == 24
    (note,) = found.notes(as_stored=False)
    assert note.startswith("videos run at 24 to 50 frames a second, and the same")
    for rate in (24, 50):
        (tmp_path / f"{rate}.tar").unlink()
    assert find_frames(tmp_path).rate() == 25 and not find_frames(tmp_path).notes(as_stored=False)


def test_names_do_not_depend_on_films_that_are_not_read(flow: Flow) -> None:
    for number in range(2):
        write_shard(flow.root / "s" / f"{number}.tar", {"__key__": "k", "mp4": film()})
    first = flow.root / "s" / "0.tar"
    first.write_bytes(first.read_bytes()[:1500])
    labels = flow.root / "labels.csv"
    labels.write_text("video,label\n0-k,first\n1-k,second\n")
    tokenize(flow, flow.root / "s", "made", "--skip-broken", "--labels", str(labels))
    (found,) = {(r["video"], r["label"]) for r in TokenStore(flow.root / "made").plan().to_pylist()}
    assert found == ("1-k", "second")


@pytest.mark.parametrize("there", [True, False])
def test_no_room_for_a_copy_is_not_a_fault_of_the_film(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tar = write_shard(flow.root / "0.tar", {"__key__": "a", "mp4": film()})
    name = "NamedTemporaryFile" if there else "gettempdir"
    monkeypatch.setattr(f"pipeline.video.films.tempfile.{name}", full)
    line = refused(flow, tar)
    assert "0.tar: a.mp4 can be written" in line and "No space left on device. Set TMPDIR" in line


def test_a_tar_that_vanishes_is_named(tmp_path: Path) -> None:
    tar = write_shard(tmp_path / "0.tar", {"__key__": "a", "mp4": film()})
    (video,) = find_frames(tar.parent).videos
    with pytest.raises(FrameError, match=r"0\.tar is named twice\."):
        named_frames(f"{tmp_path}/{{0,0}}.tar")
    tar.unlink()
    with pytest.raises(FrameError, match=r"0\.tar: a\.mp4 cannot be read: No such file"):
        list(read_images(video.frames[:2]))


def test_a_film_that_would_be_decoded_over_and_over_is_said(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "PIECE_BYTES", 3 * 16 * 16 * 2)
    for frames, times in ((30, None), (31, 8), (60, 15)):
        video = Video("a", "train", fake(frames, frames, []))
        said = encode.decoded_anew([video], 16)
        assert said is None if times is None else f"{frames} about {times} times over" in str(said)
    tar = write_shard(flow.root / "0.tar", {"__key__": "a", "mp4": film("mp4", 0, 31)})
    said = tokenize(flow, tar, "made", "--set", "tokenize.hop=16")
    assert "0-a: each 2 frames are decoded from the begin of their film, of its 31 about 8 " in said
