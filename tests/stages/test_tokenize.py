"""`mebt tokenize`: every window once, resumed byte for byte, refused when it does not fit."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.errors import TokenStoreError
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_model
from pipeline.storage.files import write_bytes
from pipeline.store.reader import TokenStore, read_rows
from pipeline.windows.of_tokens import window_reader
from pipeline.windows.plan import TokenizeConfig, WindowReader
from stages.__main__ import cli
from tests.helpers.small import PARAMS, ROOT, Flow, content, make_tokenizer
from tokenizer import VQGAN, load_tokenizer


def test_each_row_holds_the_tokens_of_the_window_that_its_plan_names(made: Flow) -> None:
    store = TokenStore(made.root / "tokens")
    model = load_tokenizer(made.root / "tokenizer.safetensors")
    videos = scan_frames(made.root / "frames").videos
    reader = WindowReader(videos, TokenizeConfig(**PARAMS["tokenize"]))
    for split in store.splits:
        plan = store.plan(split).to_pylist()
        assert [row["row"] for row in plan] == list(range(store.num_windows(split)))
        for row in plan[:: len(plan) // 5]:
            window = to_model(reader.pixels(split, row["video"], row["first_frame"]))
            expected = model.encode(window[None])
            np.testing.assert_array_equal(store.read(split, row["row"], row["row"] + 1), expected)
    assert len({tuple(x) for x in store.read("train").reshape(-1, 32).tolist()}) > 20


def test_the_plan_is_every_start_of_every_video(made: Flow) -> None:
    store = TokenStore(made.root / "tokens")
    for split in store.splits:
        found = sorted((r["video"], r["first_frame"]) for r in store.plan(split).to_pylist())
        videos = [v for v in scan_frames(made.root / "frames").videos if v.split == split]
        assert found == sorted(
            (video.name, first)
            for video in videos
            for first in range(0, len(video.frames) - 3, PARAMS["tokenize"]["hop"])
        )


def test_a_finished_store_is_left_alone(flow: Flow) -> None:
    before = content(flow.root / "tokens")
    assert "nothing to do" in flow.ok("tokenize")
    assert content(flow.root / "tokens") == before


def test_batch_size_changes_no_token(flow: Flow) -> None:
    flow.ok("tokenize", "--set", "tokenize.batch_size=7", out="other")
    assert content(flow.root / "other") == content(flow.root / "tokens")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 5])
def test_killed_and_run_again_the_store_is_the_same_byte_for_byte(flow: Flow, shards: int) -> None:
    slow = flow.start("tokenize", "--set", "tokenize.batch_size=1", out="killed")
    manifest = flow.root / "killed" / "manifest"
    deadline = time.monotonic() + 60
    while len(list(manifest.glob("*.parquet"))) < shards and time.monotonic() < deadline:
        time.sleep(0.002)
    slow.kill()
    slow.wait()
    flow.ok("tokenize", out="killed")
    assert content(flow.root / "killed") == content(flow.root / "tokens")
    assert not list((flow.root / "killed").rglob("*.partial*"))


@pytest.mark.slow
def test_any_processes_killed_and_resumed_make_the_same_bytes(flow: Flow) -> None:
    phases = "2@1,3@3!0,1@5,2@7!1,3"
    words = flow.arguments("tokenize", "--set", "tokenize.batch_size=2", out="many")
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.ranks", str(flow.root / "many"), phases, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *killed, last = [line.split() for line in done.stdout.splitlines() if line[1:2] in (" ", "@")]
    assert [phase for phase, *_ in killed] == phases.split(",")[:-1]
    for phase, *codes in killed:  # None waits for one that was killed.
        assert codes.count("-9") == (1 if "!" in phase else len(codes)), done.stderr
        assert codes.count("1") == len(codes) - codes.count("-9"), done.stderr
    assert last == ["3", "0", "0", "0"], done.stderr
    assert done.stdout.count("windows; encoded") == 1  # Only the first process speaks.
    assert "another process of this run has stopped" in done.stderr
    assert content(flow.root / "many") == content(flow.root / "tokens")


def test_the_batch_is_halved_until_it_fits(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = VQGAN.encode
    tried = []

    def small(self: VQGAN, video: torch.Tensor) -> torch.Tensor:
        tried.append(len(video))
        if len(video) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return encode(self, video)

    monkeypatch.setattr(VQGAN, "encode", small)
    said = flow.ok("tokenize", "--set", "tokenize.batch_size=8", out="halved")
    assert tried[:4] == [8, 4, 2, 2]
    assert max(tried[2:]) == 2  # What did not fit once is not tried again.
    assert "out of memory with 8 windows; going on with 4" in said
    assert content(flow.root / "halved") == content(flow.root / "tokens")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete", "swap", "part", "plan"])
def test_damage_is_named_and_only_that_shard_is_redone(flow: Flow, damage: str) -> None:
    root = flow.root / "tokens"
    before = content(root)
    shard = TokenStore(root).shard_file("train", 1)
    data = shard.read_bytes()
    broken = shard
    if damage == "flip":
        shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "truncate":
        shard.write_bytes(data[:-3])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "delete":
        shard.unlink()
    elif damage == "swap":
        other = TokenStore(root).shard_file("train", 2)
        data = other.read_bytes()
        other.write_bytes(shard.read_bytes())
        shard.write_bytes(data)
    elif damage == "part":
        broken = root / "manifest" / "train-00001.parquet"
        broken.write_bytes(b"PAR1")
    else:
        broken = root / "plan.parquet"
        broken.write_bytes(broken.read_bytes()[:-9])
    balance = "video" if damage == "plan" else "window"
    line = flow.refused("train", "--set", f"train.balance={balance}", out="run2")
    assert str(broken) in line
    last = f"step-{PARAMS['train']['max_steps']:08d}"
    assert not (flow.root / "run2" / "checkpoints" / last).exists()
    said = flow.ok("tokenize")
    redone = {"swap": "encoded 32 now", "plan": "nothing to do"}.get(damage, "encoded 16 now")
    assert redone in said
    assert content(root) == before


def test_a_store_of_other_values_is_refused_by_name(flow: Flow) -> None:
    line = flow.refused("tokenize", "--set", "tokenize.hop=3")
    assert "hop = 2, not 3" in line
    flow.ok("tokenize", "--set", "tokenize.hop=3", "--overwrite")
    assert TokenStore(flow.root / "tokens").info.hop == 3


def test_another_tokenizer_is_refused(flow: Flow) -> None:
    make_tokenizer(flow.root / "tokenizer.safetensors", seed=1)
    assert "tokenizer = " in flow.refused("tokenize")
    assert "tokenizer" in flow.refused("decode")


def test_a_store_of_another_version_is_refused(flow: Flow) -> None:
    path = flow.root / "tokens" / "store.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema": 99}))
    assert "schema 99" in flow.refused("train", out="run2")
    record["info"]["codebook_size"] = 7
    path.write_text(json.dumps(record))
    assert "was edited" in flow.refused("train", out="run2")


def test_a_link_out_of_the_store_is_not_followed(flow: Flow) -> None:
    shard = TokenStore(flow.root / "tokens").shard_file("train", 0)
    shard.rename(flow.root / "elsewhere")
    shard.symlink_to(flow.root / "elsewhere")
    assert "leads out of the store" in flow.refused("train", out="run2")


def test_a_full_disk_loses_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, data)

    monkeypatch.setattr("pipeline.storage.places.write_bytes", full)
    assert "No space left" in flow.refused("tokenize", out="full")
    monkeypatch.undo()
    flow.ok("tokenize", out="full")
    assert content(flow.root / "full") == content(flow.root / "tokens")


@pytest.mark.slow
def test_two_writers_cannot_meet(flow: Flow) -> None:
    slow = flow.start("tokenize", "--set", "tokenize.batch_size=1", out="shared")
    while not (flow.root / "shared" / "store.json").exists() and slow.poll() is None:
        time.sleep(0.002)
    try:
        assert "being written by another process" in flow.refused("tokenize", out="shared")
    finally:
        slow.kill()
        slow.wait()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "is listed in"),
        ("unreadable", "is not a readable image"),
        ("size", "all frames must have one size"),
    ],
)
def test_bad_frames_are_named(flow: Flow, what: str, message: str) -> None:
    frame = sorted((flow.root / "frames" / "train").rglob("*.png"))[3]
    if what == "missing":
        frame.unlink()
    elif what == "unreadable":
        frame.write_bytes(b"no picture")
    else:
        Image.new("RGB", (20, 16)).save(frame)
    line = flow.refused("tokenize", out="tokens2")
    assert str(frame) in line
    assert message in line


def test_clips_too_short_say_why(flow: Flow) -> None:
    line = flow.refused("tokenize", "--set", "tokenize.frames=64", out="tokens2")
    assert "no window fits" in line
    assert "48 frames" in line


def turn(frames: Path) -> None:
    """Turns every frame as it is stored, and says so in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (frames / "train").rglob("*.png"):
        with Image.open(path) as image:
            stored = image.transpose(Image.Transpose.ROTATE_90)
        stored.save(path, exif=exif)


def test_turned_frames_make_the_tokens_of_upright_ones(flow: Flow) -> None:
    turn(flow.root / "frames")
    said = flow.ok("tokenize", out="turned")
    assert (
        "6 of 12 videos begin with a frame that EXIF says to turn: such are shown upright" in said
    )
    turned = TokenStore(flow.root / "turned").read("train")
    np.testing.assert_array_equal(turned, TokenStore(flow.root / "tokens").read("train"))


@pytest.mark.slow
def test_a_store_remembers_that_frames_were_read_as_stored(flow: Flow) -> None:
    turn(flow.root / "frames")
    flow.ok("tokenize", out="turned")
    assert "as_stored" in flow.refused("tokenize", "--as-stored", out="turned")
    said = flow.ok("tokenize", "--as-stored", out="lying")
    assert "such are read as stored" in said
    before = content(flow.root / "lying")
    assert content(flow.root / "turned") != before
    store = TokenStore(flow.root / "lying")
    assert store.info.as_stored
    flow.ok("tokenize", "--set", "tokenize.as_stored=true", out="lying")
    store.shard_file("train", 1).unlink()
    words = ["--frames", "frames", "--tokenizer", "tokenizer.safetensors"]
    paths = [word if word[0] == "-" else str(flow.root / word) for word in ["lying", *words]]
    assert "train 1" in CliRunner().invoke(cli, ["tokens", "repair", *paths]).output
    assert content(flow.root / "lying") == before
    found = scan_frames(flow.root / "frames")
    (window,) = store.plan("train").slice(5, 1).to_pylist()
    config = TokenizeConfig(**PARAMS["tokenize"], as_stored=True)
    pixels = [
        reader.pixels("train", window["video"], window["first_frame"])
        for reader in (
            WindowReader(found.videos, config),
            window_reader(found, flow.root / "frames", store),
            window_reader(found, flow.root / "frames", TokenStore(flow.root / "turned")),
        )
    ]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(np.rot90(pixels[0], -1, (1, 2)), pixels[2])


def test_names_that_the_terminal_cannot_show_stop_nothing(flow: Flow) -> None:
    for number in range(0, 25, 5):
        path = flow.root / "frames2" / "\N{SNOWMAN}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
        path.with_name(os.fsdecode(b"bad\xff_%d.png" % number)).write_bytes(path.read_bytes())
    words = flow.arguments("tokenize", out="tokens2")
    words[words.index("--frames") + 1] += "2"
    result = CliRunner(charset="iso-8859-1").invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert r"\u2603: frames are numbered in steps of 5" in result.output
    assert r"bad\udcff_0.png: its name is not UTF-8" in result.output
    assert TokenStore(flow.root / "tokens2").plan("train")["video"].to_pylist() == ["\N{SNOWMAN}"]


def test_a_window_that_the_tokenizer_cannot_divide_is_refused(flow: Flow) -> None:
    assert "section tokenize" in flow.refused("tokenize", "--set", "tokenize.size=18", out="t2")


def test_rows_come_in_the_order_asked_for(made: Flow) -> None:
    store = TokenStore(made.root / "tokens")
    rows = torch.randperm(store.num_windows("train")).tolist()[:30]
    every = store.read("train")
    np.testing.assert_array_equal(read_rows(store, "train", rows), every[rows])
    np.testing.assert_array_equal(store.read("train", 13, 50), every[13:50])
    assert not store.verify()


def say_rate(flow: Flow, fps: object) -> None:
    """Lets extract say this of the rate of its frames."""
    path = flow.root / "frames" / "extract.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fps": fps}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "more", "fps"),
    [
        (25.0, (), 25.0),
        (30, ("--set", "tokenize.stride=2"), 15.0),
        (25.0, ("--set", "tokenize.fps=12.5"), 12.5),
        (None, (), None),
        (None, ("--set", "tokenize.fps=24", "--set", "tokenize.stride=3"), 8.0),
    ],
)
def test_tokens_know_the_rate_of_their_frames(
    flow: Flow, said: object, more: tuple[str, ...], fps: float | None
) -> None:
    say_rate(flow, said)
    flow.ok("tokenize", *more, out="other")
    assert TokenStore(flow.root / "other").info.fps == fps


def test_frames_of_others_have_no_rate(flow: Flow) -> None:
    (flow.root / "frames" / "extract.json").unlink()
    flow.ok("tokenize", out="other")
    store = TokenStore(flow.root / "other")
    assert store.info.fps is None
    assert store.fingerprint == TokenStore(flow.root / "tokens").fingerprint
    record = json.loads((flow.root / "other" / "store.json").read_text())
    assert "seal" not in record and "fps" not in record["info"]  # As stores of before.


def test_another_rate_makes_no_other_store(flow: Flow) -> None:
    before = TokenStore(flow.root / "tokens").fingerprint
    for fps in (25.0, 24.0):
        say_rate(flow, fps)
        assert "nothing to do" in flow.ok("tokenize")
        store = TokenStore(flow.root / "tokens")
        assert (store.info.fps, store.fingerprint) == (fps, before)
        assert store.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("fps", [0, -1.0, "25", True, [25], 1e9, 10**400])
def test_what_is_no_rate_is_refused_by_name(flow: Flow, fps: object) -> None:
    say_rate(flow, fps)
    line = flow.refused("tokenize", out="other")
    assert "extract.json: fps is" in line
    assert "set tokenize.fps" in line
    flow.ok("tokenize", "--set", "tokenize.fps=25", out="other")
    assert "fps must be in [0.1, 1000]" in flow.refused("tokenize", "--set", "tokenize.fps=0")


def test_a_rate_that_was_edited_is_noticed(flow: Flow) -> None:
    say_rate(flow, 25.0)
    flow.ok("tokenize")
    path = flow.root / "tokens" / "store.json"
    text = path.read_text()
    for edited in (text.replace("25.0", "26.0"), text.replace('"fps": 25.0', '"fps": null')):
        assert edited != text
        path.write_text(edited)
        with pytest.raises(TokenStoreError, match=r"store\.json was edited"):
            TokenStore(flow.root / "tokens")


@pytest.mark.slow
def test_the_rate_goes_all_the_way_to_the_samples(flow: Flow) -> None:
    say_rate(flow, 12.5)
    flow.ok("tokenize")
    flow.ok("train", out="other")
    flow.ok("sample", "--run", str(flow.root / "other"), out="drawn")
    assert TokenStore(flow.root / "drawn").info.fps == 12.5
    for words in (
        ("export", "drawn", "--format", "webdataset", "--out", "tars"),
        ("import", "tars", "--out", "back"),
    ):
        places = [
            str(flow.root / word) if word in ("drawn", "tars", "back") else word for word in words
        ]
        assert CliRunner().invoke(cli, ["tokens", *places]).exit_code == 0
    said = CliRunner().invoke(cli, ["tokens", "info", str(flow.root / "back")]).output
    assert "rate         12.5 frames a second\n" in said
