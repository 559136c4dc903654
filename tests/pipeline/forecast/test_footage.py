"""Clips and windows are foretold exactly as `extract` and `tokenize` make them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import FrameError
from pipeline.forecast.footage import look_at_images, look_at_videos
from pipeline.forecast.store_size import frame_table
from pipeline.forecast.windows import count_windows, frames_read, windows_at_hops
from pipeline.frames.scan import Video, scan_frames
from pipeline.storage.sealed import to_parquet
from pipeline.video.extract import extract
from pipeline.video.footage import About
from pipeline.video.packets import count_frames
from pipeline.video.reader import read_video
from pipeline.video.sources import find_videos
from pipeline.video.synthetic import moving_shapes
from pipeline.video.tiles import ExtractConfig
from pipeline.windows.plan import TokenizeConfig, plan_windows
from tests.helpers.film import picture, write_film
from tests.stages.test_lerobot import write_set
from tests.stages.test_shards import write_shard

WINDOW = TokenizeConfig(frames=4, stride=2, hop=3, size=16)
FILMS = {
    "a.mp4": ("libx264", 25),
    "b.mkv": ("libx264", 24),
    "c.avi": ("mpeg4", 30),
    "d.mp4": ("mpeg4", 10),
    "e.mkv": ("mjpeg", 25),
    "f.ts": ("mpeg2video", 25),
}


def write_films(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (codec, rate)) in enumerate(FILMS.items()):
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frames = list(moving_shapes(31 + number, 48, seed=number))
        write_film(folder / name, frames, codec, rate=rate, pixels=pixels)
    write_film(folder / "still.mp4", [picture(0)] * 30, "libx264")
    (folder / "notes.txt").write_text("no video")
    half = (folder / "b.mkv").read_bytes()
    (folder / "half.mkv").write_bytes(half[: len(half) // 2])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"fps": 12.0},
        {"filters": ("hflip",)},
        {"clip_frames": 9},
        {"clip_frames": 9, "min_motion": 0.05},
        {"tile": 24, "test_share": 0.3},
    ],
    ids=str,
)
def test_windows_of_videos_are_those_of_their_frames(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    config = ExtractConfig(size=16, **values)
    videos, out = write_films(tmp_path / "videos"), tmp_path / "frames"
    footage = look_at_videos([videos], config, tmp_path / "look")
    made = extract(*find_videos([videos], config, out=out), out, config)
    frames = scan_frames(out).videos
    told, there = (
        sorted((v.split, v.name, [Path(str(frame)).name for frame in v.frames]) for v in videos)
        for videos in (footage.videos, frames)
    )
    assert told == there
    told_bytes, bytes_there = (
        len(to_parquet(frame_table(videos, root, size=16)))
        for videos, root in ((footage.videos, None), (frames, out))
    )
    assert told_bytes == pytest.approx(bytes_there, rel=0.15)
    rejected = {item.name for item in (*footage.rejected, *footage.still)}
    assert rejected == {item.name for item in made.rejected}
    assert bool(footage.still) == bool(config.min_motion)
    plan = plan_windows(frames, WINDOW)
    for split, count in count_windows(footage.videos, WINDOW).items():
        assert count == plan.num_windows(split)
    # Those whose packets tell it are not decoded, unless something asks for pixels.
    by_packets = 0 if values.keys() & {"filters", "min_motion"} else 5
    assert footage.by_packets == by_packets


@pytest.mark.parametrize("fps", [None, 7.0, 12.0, 100.0])
@pytest.mark.parametrize("name", FILMS)
def test_packets_tell_how_many_frames_there_are(
    tmp_path: Path, name: str, fps: float | None
) -> None:
    codec, rate = FILMS[name]
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / name
    uneven = {"times": lambda n: n + 3 * (n > 5)} if name.endswith("mp4") else {}
    write_film(path, [picture(n) for n in range(20)], codec, rate=rate, pixels=pixels, **uneven)
    told, seen = About(), About()
    counted = count_frames(path, fps=fps, about=told)
    if name in ("c.avi", "f.ts"):  # Neither says when frames are shown.
        assert counted is None
    else:
        assert counted == sum(1 for _ in read_video(path, fps=fps, about=seen))
        assert (told.rate, told.notes.items() - seen.notes.items()) == (seen.rate, set())
        assert ("variable rate" in told.notes) == ("variable rate" in seen.notes)


def test_a_video_that_breaks_off_is_no_count(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    write_film(path, moving_shapes(100, 48, seed=0), "libx264")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FrameError, match="breaks off after"):
        count_frames(path)


def test_every_kind_of_video_is_looked_at(tmp_path: Path) -> None:
    looks = look_at_videos(
        [write_films(tmp_path / "videos")], ExtractConfig(), tmp_path / "look"
    ).looks
    assert set(looks) == {*(Path(name).stem for name in FILMS), "still"}


def test_videos_and_images_in_tars_are_counted(tmp_path: Path) -> None:
    film = (write_films(tmp_path / "videos") / "a.mp4").read_bytes()
    image = tmp_path / "i.png"
    Image.fromarray(picture(1)).save(image)
    images = {f"{n:05d}.png": image.read_bytes() for n in range(12)}
    write_shard(
        tmp_path / "shards/0.tar", {"__key__": "x", "mp4": film}, {"__key__": "y", **images}
    )
    config = ExtractConfig(size=16)
    places, out = [tmp_path / "shards/0.tar"], tmp_path / "frames"
    footage = look_at_videos(places, config, tmp_path / "look")
    extract(*find_videos(places, config, out=out), out, config)
    assert sorted((v.name, len(v.frames)) for v in footage.videos) == sorted(
        (v.name, len(v.frames)) for v in scan_frames(out).videos
    )
    assert len(footage.looks) == 2
    assert not list(tmp_path.glob("*/.extract/staged/members/*"))


def test_episodes_of_a_camera_are_counted(tmp_path: Path) -> None:
    root, out = write_set(tmp_path / "set"), tmp_path / "frames"
    config = ExtractConfig(size=16, test_share=0.25)
    footage = look_at_videos([root], config, tmp_path / "look", cameras=["wrist"])
    extract(*find_videos([root], config, out=out, cameras=["wrist"]), out, config)
    assert sorted((v.name, len(v.frames)) for v in footage.videos) == sorted(
        (v.name, len(v.frames)) for v in scan_frames(out).videos
    )


def test_nothing_of_use_is_one_line_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(FrameError, match=r"no video of use \(1 rejected\); for example notes"):
        look_at_videos([tmp_path], ExtractConfig(), tmp_path / "look")


def test_damaged_images_are_named(tmp_path: Path) -> None:
    config = ExtractConfig(size=16)
    videos, out = write_films(tmp_path / "videos"), tmp_path / "frames"
    extract(*find_videos([videos], config, out=out), out, config)
    for path in (out / "train/a").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    footage = look_at_images(out, as_stored=False, rate=25.0)
    (rejected,) = footage.rejected
    assert rejected.name == "train/a"
    assert rejected.reason.endswith("tokenize will stop at it.")
    assert {seen.width for seen in footage.seen} == {16}


def test_windows_at_other_hops() -> None:
    videos = [Video("a", "train", ("",) * 20), Video("b", "test", ("",) * 6)]
    found = windows_at_hops(videos, WINDOW)  # A window spans 7 frames.
    assert list(found) == [1, 2, 3, 4, 7, 8, 16]
    assert found[1] == {"train": 14, "test": 0}
    assert found[7] == {"train": 2, "test": 0}
    for hop, counts in found.items():
        plan = plan_windows(videos, TokenizeConfig(frames=4, stride=2, hop=hop, size=16))
        assert counts["train"] == plan.num_windows("train")
    assert frames_read(videos, WINDOW) == 12 + 7  # Windows begin at 0, 3 … 12.
    assert frames_read(videos, TokenizeConfig(frames=4, stride=2, hop=9, size=16)) == 2 * 4
    assert np.sum(list(count_windows(videos, WINDOW).values())) == 5
