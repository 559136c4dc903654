"""Frames that are damaged, mended, changed, added, removed: what was finished is never lost."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.store.reader import TokenStore
from tests.helpers.small import Flow, content
from tests.stages.test_train import RESULTS, assert_same_run
from tokenizer import VQGAN


def pictures(flow: Flow, split: str = "train") -> list[Path]:
    return sorted((flow.root / "frames" / split).rglob("*.png"))


def video_of(frame: Path) -> str:
    return f"{frame.parent.parent.name}/{frame.parent.name}"


def cut(path: Path) -> bytes:
    """Damages a picture; returns what it was."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return data


def repaint(path: Path) -> None:
    before = path.stat().st_size
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    assert path.stat().st_size != before


def shards_of(flow: Flow, *frames: Path) -> int:
    """Counts the windows of the shards that hold these frames."""
    store = TokenStore(flow.root / "tokens")
    found = set()
    for frame in frames:
        number = [path for path in pictures(flow) if path.parent == frame.parent].index(frame)
        for row in store.plan("train").to_pylist():
            if row["video"] == video_of(frame) and 0 <= number - row["first_frame"] < 4:
                found.add(row["shard"])
    assert found
    return sum(len(range(*store.shard_rows("train", shard))) for shard in found)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each call of the model encodes."""
    counts: list[int] = []
    encode = VQGAN.encode

    def counted(self: VQGAN, video):
        counts.append(len(video))
        return encode(self, video)

    monkeypatch.setattr(VQGAN, "encode", counted)
    return counts


def test_damaged_frames_are_named_at_once_and_stop_only_their_shards(
    flow: Flow, encoded: list[int]
) -> None:
    victims = [pictures(flow)[7], pictures(flow)[8], pictures(flow)[70]]
    redone = shards_of(flow, *victims)
    whole = [cut(path) for path in victims]
    line = flow.refused("tokenize", out="new")
    assert "3 frames cannot be used: " in line
    for path in victims:
        assert f"{path} is not a readable image" in line
    left = TokenStore(flow.root / "new", allow_partial=True)
    assert sum(len(range(*left.shard_rows(*shard))) for shard in left.missing()) == redone
    for path, data in zip(victims, whole, strict=True):
        path.write_bytes(data)
    encoded.clear()
    said = flow.ok("tokenize", out="new")
    assert sum(encoded) == redone
    assert f"took over {180 - redone}, encoded {redone} now" in said
    assert "3 frames differ" in said
    assert content(flow.root / "new") == content(flow.root / "tokens")


def test_many_damaged_frames_are_all_listed(flow: Flow) -> None:
    victims = pictures(flow)[:40:8]
    for path in victims:
        cut(path)
    result = flow.run("tokenize", out="new")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: 5 frames cannot be used: {victims[0]} is not")
    assert "All are listed above." in line
    assert line.count("is not a readable image") == 1
    for path in victims:
        assert f"damaged: {path} is not a readable image" in result.output


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tokenizer_that_meets_a_damaged_frame_names_all(flow: Flow, split: str) -> None:
    victims = [path for n, path in enumerate(pictures(flow, split)) if n % 16 in (3, 11)]
    whole = [cut(path) for path in victims]
    result = flow.run("fit-tokenizer", out="new")
    assert result.exit_code == 1
    assert f"{len(victims)} frames cannot be used: " in result.output
    for path in victims:
        assert f"damaged: {path} is not a readable image" in result.output
    assert "once all are mended, the same command goes on" in result.output
    for path, data in zip(victims, whole, strict=True):
        path.write_bytes(data)
    flow.ok("fit-tokenizer", out="new")


@pytest.mark.parametrize("stage", ["tokenize", "fit-tokenizer"])
def test_verified_frames_are_named_before_anything_is_made(flow: Flow, stage: str) -> None:
    victims = [pictures(flow)[9], pictures(flow, "test")[5]]
    whole = [cut(path) for path in victims]
    line = flow.refused(stage, "--verify-frames", out="new")
    assert "2 frames cannot be used: " in line
    assert all(str(path) in line for path in victims)
    assert "Nothing was made of any frame yet" in line
    assert not (flow.root / "new").exists()
    for path, data in zip(victims, whole, strict=True):
        path.write_bytes(data)
    flow.ok(stage, "--verify-frames", out="new")


def test_a_finished_store_of_changed_frames_is_refused_until_it_is_updated(
    flow: Flow, encoded: list[int]
) -> None:
    changed = pictures(flow)[30]
    redone = shards_of(flow, changed)
    repaint(changed)
    before = content(flow.root / "tokens")
    line = flow.refused("tokenize")
    assert f"1 frame differs ({changed.name} of {video_of(changed)})" in line
    assert "It is finished, and experiments may be reading it. Give --update" in line
    assert content(flow.root / "tokens") == before
    said = flow.ok("tokenize", "--update")
    assert sum(encoded) == redone
    assert f"took over {180 - redone}, encoded {redone} now" in said
    flow.ok("tokenize", out="fresh")
    assert content(flow.root / "tokens") == content(flow.root / "fresh")


def change_videos(flow: Flow) -> None:
    """Adds a video, removes one, renames one and cuts one short, in a folder without lists."""
    root = flow.root / "frames"
    for path in root.glob("*.txt"):
        path.unlink()
    shutil.rmtree(root / ".extract", ignore_errors=True)
    folders = sorted(path for path in (root / "train").iterdir() if path.is_dir())
    shutil.copytree(folders[0], root / "train" / "added")
    shutil.rmtree(folders[1])
    folders[2].rename(root / "train" / "renamed")
    for path in sorted(folders[3].iterdir())[-9:]:
        path.unlink()


def test_update_makes_the_store_that_a_fresh_run_makes(flow: Flow, encoded: list[int]) -> None:
    change_videos(flow)
    flow.ok("tokenize", out="fresh")
    encoded.clear()
    assert "1 video is new" in (line := flow.refused("tokenize")) or "videos are new" in line
    said = flow.ok("tokenize", "--update")
    total = sum(TokenStore(flow.root / "fresh").info.counts.values())
    assert f"took over {total - sum(encoded):,}, encoded {sum(encoded):,} now" in said
    assert 0 < sum(encoded) < total
    assert content(flow.root / "tokens") == content(flow.root / "fresh")
    assert "nothing to do" in flow.ok("tokenize", "--update")


@pytest.mark.slow
def test_two_processes_update_and_name_damaged_frames_once(flow: Flow) -> None:
    change_videos(flow)
    flow.ok("tokenize", out="fresh")
    words = ("--update", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    added = sorted((flow.root / "frames" / "train" / "added").iterdir())[5]
    whole = cut(added)
    assert flow.start("tokenize", *words).wait(300) == 1
    said = (flow.root / "errors.txt").read_text()
    assert said.count(f"a frame cannot be used: {added}") == 1
    added.write_bytes(whole)
    assert flow.start("tokenize", *words).wait(300) == 0
    assert content(flow.root / "tokens") == content(flow.root / "fresh")


def test_fit_tokenizer_saves_its_state_at_a_damaged_frame_and_goes_on(flow: Flow) -> None:
    more = [
        w
        for v in ("max_steps=12", "checkpoint_every=12", "validate_every=12")
        for w in ("--set", f"fit_tokenizer.{v}")
    ]
    flow.ok("fit-tokenizer", *more, out="whole")
    victim = pictures(flow)[5]  # Of a video that the first step does not draw.
    data = cut(victim)
    line = flow.refused("fit-tokenizer", *more, out="stopped")
    step = int(line.partition("Step ")[2].partition(" is saved")[0])
    assert str(victim) in line
    assert (flow.root / "stopped" / "checkpoints" / "last").read_text() == f"step-{step:08d}\n"
    victim.write_bytes(data)
    said = flow.ok("fit-tokenizer", *more, out="stopped")
    assert f"1 frame differs ({victim.name} of {video_of(victim)})" in said
    assert f"{12 - step} steps" in said
    assert_same_run(flow.root / "stopped", flow.root / "whole", RESULTS["fit-tokenizer"])
    repaint(victim)
    line = flow.refused("fit-tokenizer", *more, out="stopped")  # It is done.
    assert f"other frames: 1 frame differs ({victim.name} of {video_of(victim)})" in line
    flow.ok("fit-tokenizer", *more, "--set", "fit_tokenizer.max_steps=13", out="stopped")
    shutil.rmtree(victim.parent)
    for path in (flow.root / "frames").glob("*.txt"):
        path.unlink()
    more += ["--set", "fit_tokenizer.max_steps=14"]
    line = flow.refused("fit-tokenizer", *more, out="stopped")
    assert f"1 video is gone ({video_of(victim)} in train)" in line


def test_a_frame_that_may_not_be_read_stops_only_its_shard(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = pictures(flow)[20]
    read = Path.read_bytes

    def failing(self: Path) -> bytes:
        if self == victim:
            raise OSError(5, os.strerror(5), str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    line = flow.refused("tokenize", out="new")
    assert f"a frame cannot be used: {victim} cannot be read: Input/output error." in line
    monkeypatch.undo()
    flow.ok("tokenize", out="new")
    assert content(flow.root / "new") == content(flow.root / "tokens")
