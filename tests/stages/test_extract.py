"""`mebt extract`: videos of any kind in, frame folders out, every file accounted for."""

import dataclasses
import errno
import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from pipeline.errors import FrameError
from pipeline.frames.scan import scan_frames
from pipeline.storage.files import read_json, remove
from pipeline.video.clips import Source, cut_in_time
from pipeline.video.extract import extract
from pipeline.video.sources import _hash as sources_hash
from pipeline.video.sources import find_videos
from pipeline.video.synthetic import moving_shapes, synthetic_videos
from pipeline.video.tiles import ExtractConfig
from pipeline.video.writer import write_mp4
from stages.__main__ import cli
from tests.helpers.film import BLUE, GREEN, RED, WHITE, corners, picture, write_film
from tests.helpers.small import Flow, content

CONFIG = ExtractConfig(size=16, test_share=0.25)


def write_videos(folder: Path, *names: str, size: int = 48, frames: int = 20) -> Path:
    for seed, name in enumerate(names):
        write_mp4(folder / name, np.stack(list(moving_shapes(frames, size, seed=seed))), fps=25)
    return folder


def run(videos: Path, out: Path, config: ExtractConfig = CONFIG, **options):
    return extract(*find_videos([videos], config, out=out), out, config, **options)


def test_every_file_is_kept_or_rejected_with_a_reason(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "deep/b c.mp4")
    (videos / "notes.txt").write_text("no video")
    (videos / "broken.mp4").write_bytes((videos / "a.mp4").read_bytes()[:300])
    (videos / "empty.avi").write_bytes(b"")
    (videos / "out.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (tmp_path / "elsewhere.mp4").write_bytes((videos / "a.mp4").read_bytes())
    made = run(videos, tmp_path / "frames")
    assert made.clips == {"train": 3, "test": 3}
    reasons = {rejected.name: rejected.reason for rejected in made.rejected}
    assert set(reasons) == {"notes.txt", "broken.mp4", "empty.avi"}
    assert "broken.mp4 cannot be decoded" in reasons["broken.mp4"]
    record = read_json(tmp_path / "frames" / "extract.json", FrameError, "record")
    assert record["num_videos"] == 3
    found = scan_frames(tmp_path / "frames")
    assert sorted((v.name, v.split, len(v.frames)) for v in found.videos) == [
        ("test/a", "test", 5),
        ("test/deep-b_c", "test", 5),
        ("test/out", "test", 5),  # A link to a video elsewhere.
        ("train/a", "train", 15),
        ("train/deep-b_c", "train", 15),
        ("train/out", "train", 15),
    ]
    assert not found.rejected


def test_every_video_has_a_name_of_its_own(tmp_path: Path) -> None:
    paths = ["a-mp4.avi", "a.avi", "a.mp4", "x/y-z.mp4", "x-y/z.mp4", "x-y-z.mp4", "n\nm\x85.mp4"]
    write_videos(tmp_path, *paths, frames=1)
    sources, rejected = find_videos([tmp_path], CONFIG, out=tmp_path / "out")
    assert {source.name for source in sources} == {
        *("a", "a-mp4", "a-mp4-2", "x-y-z", "x-y-z-mp4", "x-y-z-mp4-2", "n_m_")
    }
    assert len(sources) == len(paths)
    assert not rejected


def test_links_are_followed_to_files_or_rejected(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "deep/b.mp4", "out/c.mp4")
    (videos / "nowhere.mp4").symlink_to("gone.mp4")
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "folder").symlink_to("deep")
    (videos / "d.mp4").symlink_to("deep/b.mp4")
    os.mkfifo(videos / "pipe.mp4")
    sources, rejected = find_videos([videos], CONFIG, out=videos / "out")
    assert [source.name for source in sources] == ["a", "d", "deep-b"]
    assert {r.name: r.reason for r in rejected} == {
        "nowhere.mp4": "a link that leads nowhere",
        "loop.mp4": "a link that leads nowhere",
        "folder": "a link to a folder, which is not followed",
        "pipe.mp4": "neither a file nor a folder",
    }


@pytest.mark.parametrize("out", ["videos", "."])
def test_videos_are_not_extracted_over_themselves(tmp_path: Path, out: str) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4")
    with pytest.raises(FrameError, match="holds the videos themselves"):
        run(videos, tmp_path / out, overwrite=True)
    assert (videos / "a.mp4").exists()


def test_frames_are_the_videos_frames(tmp_path: Path) -> None:
    (source,) = synthetic_videos(1, CONFIG)
    extract([source], [], tmp_path / "frames", CONFIG)
    files = (tmp_path / "frames" / "train.txt").read_text().split()
    files += (tmp_path / "frames" / "test.txt").read_text().split()
    expected = list(moving_shapes(len(files), 16, seed=0))
    for file, frame in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames" / file)), frame)


def test_train_is_earlier_than_test_and_no_clip_spans_both() -> None:
    config = ExtractConfig(clip_frames=7, test_share=0.3)
    pieces = list(cut_in_time(50, config))
    assert [number for _, numbers in pieces for number in numbers] == list(range(50))
    assert {split for split, numbers in pieces if numbers.stop <= 35} == {"train"}
    assert {split for split, numbers in pieces if numbers.start >= 35} == {"test"}


def test_tiles_cover_the_scene_and_still_clips_are_named(tmp_path: Path) -> None:
    frames = np.full((12, 64, 96, 3), 128, dtype=np.uint8)
    for number in range(12):  # Something moves in the upper left tile only.
        frames[number, 8:16, 2 * number : 2 * number + 8] = 255
    write_mp4(tmp_path / "videos" / "scene.mp4", frames, fps=25)
    config = ExtractConfig(size=16, tile=32, clip_frames=6, min_motion=0.05, test_share=0.0)
    made = run(tmp_path / "videos", tmp_path / "frames", config)
    assert made.clips["train"] + len(made.rejected) == 2 * 6
    names = {path.parent.name for path in (tmp_path / "frames").rglob("*.png")}
    assert names == {"scene-x0-y0-f00000", "scene-x0-y0-f00006"}
    assert all(rejected.reason.startswith("still: 0.0") for rejected in made.rejected)


def test_frame_rate_is_lowered_and_never_raised(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4")
    for fps, count in ((12.5, 10), (5.0, 4), (100.0, 20)):
        config = ExtractConfig(size=16, fps=fps, test_share=0.0)
        assert run(videos, tmp_path / f"frames{fps}", config).num_frames == count


def test_a_stopped_extract_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    run(videos, tmp_path / "whole")
    saved = 0

    def full_disk(self: Image.Image, *args: object, **kwargs: object) -> None:
        nonlocal saved
        saved += 1
        if saved > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, **kwargs)

    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(videos, tmp_path / "frames")
    monkeypatch.undo()
    assert not (tmp_path / "frames" / "train.txt").exists()
    run(videos, tmp_path / "frames")
    assert content(tmp_path / "frames") == content(tmp_path / "whole")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").rglob("*.png")}
    run(videos, tmp_path / "frames")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_lost_frames_are_made_again(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    out = tmp_path / "frames"
    run(videos, out)
    before = content(out)
    stamp = (out / "train/b/b_00000.png").stat().st_mtime_ns
    shutil.rmtree(out / "train" / "a")
    (out / "test/a/a_00016.png").unlink()
    run(videos, out)
    assert content(out) == before
    assert (out / "train/b/b_00000.png").stat().st_mtime_ns == stamp


def test_overwriting_forgets_what_was_done_before_it_deletes_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames"
    run(write_videos(tmp_path / "videos", "a.mp4"), out)
    config = ExtractConfig(size=8, test_share=0.25)

    def killed(path: Path) -> None:
        if path.parent == out:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr("pipeline.storage.places.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "videos", out, config, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in (out / ".extract").iterdir()] == ["made_from.json"]
    with pytest.raises(FrameError, match=r"was made with config\.size = 16, not 8"):
        run(tmp_path / "videos", out, config)
    run(tmp_path / "videos", out, config, overwrite=True)  # The folder is still known as its own.
    run(tmp_path / "videos", tmp_path / "whole", config)
    assert content(out) == content(tmp_path / "whole")


def test_a_changed_record_of_a_video_is_refused_by_name(flow: Flow) -> None:
    records = (flow.root / "frames" / ".extract").glob("*.json")
    record = next(path for path in records if path.name != "made_from.json")
    record.write_text(record.read_text().replace("train", "trajn"))
    before = content(flow.root / "frames")
    assert f"{record} is damaged; delete it" in flow.refused("extract")
    (other,) = [path for path in records if path.name not in ("made_from.json", record.name)][:1]
    record.write_bytes(other.read_bytes())
    assert f"{record} is damaged; delete it" in flow.refused("extract")
    record.unlink()
    flow.ok("extract")
    after = content(flow.root / "frames")
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {f".extract/{record.name}"}


@pytest.mark.parametrize("late", [1, 150])
def test_a_video_that_changes_its_size_leaves_nothing(tmp_path: Path, late: int) -> None:
    (good,) = synthetic_videos(1, CONFIG)
    still = np.zeros((20, 30, 3), np.uint8)
    bad = Source("bad", "", lambda **_: iter([*[still] * late, still[:10]]))
    made = extract([bad, good], [], tmp_path, CONFIG)
    assert [tuple(asdict(r).values()) for r in made.rejected] == [
        ("bad", "bad changes its size from 30x20 to 30x10.")
    ]
    assert not list(tmp_path.rglob("bad*"))


def test_other_values_are_refused_by_name_unless_overwritten(flow: Flow) -> None:
    line = flow.refused("extract", "--set", "extract.size=8")
    assert "config.size = 16, not 8" in line
    flow.ok("extract", "--set", "extract.size=8", "--overwrite")
    with Image.open(next((flow.root / "frames").rglob("*.png"))) as image:
        assert image.size == (8, 8)


def test_a_foreign_folder_is_left_alone(flow: Flow) -> None:
    (flow.root / "mine").mkdir()
    (flow.root / "mine" / "thesis.txt").write_text("precious")
    for more in ((), ("--overwrite",)):
        line = flow.refused("extract", *more, out="mine")
        assert "mine holds thesis.txt but no .extract/made_from.json" in line
    assert (flow.root / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["empty", "texts"])
def test_a_folder_without_videos_is_one_clear_line(tmp_path: Path, name: str, flow: Flow) -> None:
    (flow.root / name).mkdir()
    if name == "texts":
        (flow.root / name / "a.txt").write_text("")
    words = ["extract", "--videos", str(flow.root / name), "--out", str(flow.root / "out")]
    params = ["--params", str(flow.root / "params.yaml")]
    result = CliRunner().invoke(cli, [*words, *params])
    assert result.exit_code == 1
    assert "holds no video" in result.output


def test_only_corrupt_videos_say_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"\0" * 1000)
    with pytest.raises(
        FrameError, match=r"no clip is usable of 1 files; for example a.mp4: .*a\.mp4"
    ):
        run(tmp_path / "videos", tmp_path / "frames")


def test_a_scene_smaller_than_its_tile_says_so(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4")
    config = ExtractConfig(size=16, tile=64)
    with pytest.raises(FrameError, match="48x48, smaller than tile 64"):
        run(videos, tmp_path / "frames", config)


def test_the_summary_is_json_and_counts_add_up(made: Flow) -> None:
    record = json.loads((made.root / "frames" / "extract.json").read_text())
    assert record["clips"] == {"train": 6, "test": 6}
    listed = sum(
        len((made.root / "frames" / f"{split}.txt").read_text().split())
        for split in ("train", "test")
    )
    assert record["num_frames"] == listed == len(list((made.root / "frames").rglob("*.png")))


def tars_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_tars_give_the_same_tokens_as_a_folder(flow: Flow) -> None:
    said = flow.ok("extract", "--format", "webdataset", out="tars")
    assert said.split(": ")[-1] == flow.ok("extract").split(": ")[-1]
    assert sorted(tars_of(flow.root / "tars")) == ["test-00000-000.tar", "train-00000-000.tar"]
    assert not list((flow.root / "tars").rglob("*.png"))
    flow.ok("tokenize", "--frames", str(flow.root / "tars"), "--workers", "1", out="other")
    assert content(flow.root / "other") == content(flow.root / "tokens")
    assert "format = 'webdataset', not 'folder'" in flow.refused("extract", out="tars")


def test_tars_are_bounded_and_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, tile=16, clip_frames=8)
    sources = synthetic_videos(5, dataclasses.replace(config, size=32))
    monkeypatch.setattr("pipeline.video.extract.TAR_BYTES", 80_000)
    extract(sources, [], tmp_path / "whole", config, format="webdataset")
    whole = tars_of(tmp_path / "whole")
    assert len({name[:11] for name in whole if name.startswith("train")}) > 2
    assert max(map(len, whole.values())) < 80_000 + 30_000  # What one clip adds at most.
    count = 0

    def stopped(frames, **how):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return frames(**how)

    broken = [dataclasses.replace(s, read=partial(stopped, s.read)) for s in sources]
    with pytest.raises(OSError):
        extract(broken, [], tmp_path / "stopped", config, format="webdataset")
    assert 0 < len(tars_of(tmp_path / "stopped")) < len(whole)
    extract(sources, [], tmp_path / "stopped", config, format="webdataset")
    assert tars_of(tmp_path / "stopped") == whole
    (tmp_path / "stopped" / "test-00001-000.tar").unlink()
    extract(sources, [], tmp_path / "stopped", config, format="webdataset")
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # It forgets a file.
def test_webdataset_itself_reads_every_clip_whole(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", "a.v1.mp4", "a.v2.mp4")
    sources, foreign = find_videos([tmp_path / "videos"], CONFIG, out=tmp_path / "tars")
    extract(sources, foreign, tmp_path / "tars", CONFIG, format="webdataset")
    run(tmp_path / "videos", tmp_path / "folder")
    found = {}
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            frames = json.loads(sample["json"])["frames"]
            images = [sample[key] for key in sorted(sample) if key.endswith(".png")]
            found |= dict(zip(frames, images, strict=True))
    files = (tmp_path / "folder").rglob("*.png")
    assert found == {str(f.relative_to(tmp_path / "folder")): f.read_bytes() for f in files}


def test_videos_in_train_and_test_stay_there(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_videos(videos, "train/a.mp4", "train/deep/b.mp4", "test/a.mp4", "extra/c.mp4", "d.mp4")
    made = run(videos, tmp_path / "frames")
    assert {r.name: r.reason for r in made.rejected} == {
        "d.mp4": "outside of train/ and test/",
        "extra/c.mp4": "outside of train/ and test/",
    }
    found = scan_frames(tmp_path / "frames")
    assert sorted((v.name, v.split, len(v.frames)) for v in found.videos) == [
        ("test/a", "test", 20),
        ("train/a-mp4", "train", 20),
        ("train/deep-b", "train", 20),
    ]


def test_whatever_is_wrong_with_one_video_rejects_that_one(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    write_videos(videos, "small.mp4", size=16)
    (videos / "b.mp4").rename(videos / f"{'n' * 247}.mp4")
    (videos / "c.mp4").rename(os.fsdecode(os.fsencode(videos) + b"/\xff.mp4"))
    config = dataclasses.replace(CONFIG, filters=("crop=32:32",))
    made = run(videos, tmp_path / "frames", config)
    reasons = {rejected.name: rejected.reason for rejected in made.rejected}
    assert reasons.keys() == {"small", "n" * 247}
    assert "does not go through the filters" in reasons["small"]
    assert "too long; rename the video" in reasons["n" * 247]
    names = {video.name for video in scan_frames(tmp_path / "frames").videos}
    assert names == {"train/a", "test/a", "train/_", "test/_"}
    assert not list((tmp_path / "frames").rglob("nnn*"))


def test_a_video_that_may_not_be_read_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    hashed = sources_hash

    def denied(path: Path, advance) -> str:
        if path.name == "b.mp4":
            raise PermissionError(errno.EACCES, "Permission denied")
        return hashed(path, advance)

    monkeypatch.setattr("pipeline.video.sources._hash", denied)
    made = run(videos, tmp_path / "frames")
    assert [(r.name, r.reason) for r in made.rejected] == [
        ("b.mp4", f"{videos / 'b.mp4'} cannot be read: Permission denied.")
    ]


def test_any_number_of_workers_makes_the_same(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", *(f"{n}.mp4" for n in range(5)), size=16)
    for workers in (1, 3):
        run(videos, tmp_path / f"{workers}", workers=workers)
        run(videos, tmp_path / f"tars{workers}", workers=workers, format="webdataset")
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert content(tmp_path / "tars1") == content(tmp_path / "tars3")


def test_a_video_is_decoded_once(tmp_path: Path) -> None:
    (source,) = synthetic_videos(1, CONFIG)
    opened = 0

    def read(**how):
        nonlocal opened
        opened += 1
        return source.read(**how)

    extract([dataclasses.replace(source, read=read)], [], tmp_path / "frames", CONFIG)
    assert opened == 1


def test_videos_are_told_by_their_content_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    (videos / "a.mp4").rename(videos / "00001.MTS")
    (videos / "b.mp4").rename(videos / "b")
    words = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out")]
    words += ["--params", str(tmp_path / "params.yaml")]
    (tmp_path / "params.yaml").write_text("extract: {size: 16}")
    result = CliRunner().invoke(cli, words)
    assert "2 videos in" in result.output
    assert "at 25 frames a second" in result.output
    hashed: list[Path] = []
    monkeypatch.setattr(
        "pipeline.video.sources._hash", lambda path, _: hashed.append(path) or "other"
    )
    (videos / "b").touch()
    result = CliRunner().invoke(cli, words)
    assert hashed == [videos / "b"]
    hashes = tmp_path / "out" / ".extract" / "hashes.json"
    for damaged in (hashes.read_text().replace("a", "b", 1), "[]", '{"files": 5}'):
        hashed.clear()
        hashes.write_text(damaged)
        CliRunner().invoke(cli, words)
        assert sorted(hashed) == [videos / "00001.MTS", videos / "b"]
    assert "other videos" in result.output  # Its hash is another one now.


def test_what_there_is_to_say_of_videos_is_said_once_and_kept(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, rate in (("a", 25), ("b", 25), ("c", 50)):
        frames = [picture(number) for number in range(12)]

        def turn(stream: av.VideoStream) -> None:
            stream.set_display_rotation(90)

        write_film(videos / f"{name}.mp4", frames, "mpeg4", rate=rate, prepare=turn)
    words = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out")]
    words += ["--params", str(tmp_path / "params.yaml")]
    (tmp_path / "params.yaml").write_text("extract: {size: 16}")
    for _ in range(2):
        said = CliRunner().invoke(cli, words).output
        assert "a: turned or mirrored, as the file says (and 2 more videos alike" in said
        assert "videos run at 25 to 50 frames a second" in said
    record = json.loads((tmp_path / "out" / "extract.json").read_text())
    assert record["fps"] == 25
    assert set(record["notes"]["turned"]) == {"a", "b", "c"}
    with Image.open(tmp_path / "out" / "train/a/a_00000.png") as image:
        np.testing.assert_allclose(corners(np.asarray(image)), [GREEN, WHITE, RED, BLUE], atol=25)
    result = CliRunner().invoke(cli, [*words, "--as-stored"])
    assert "config.as_stored = false, not true" in result.output
