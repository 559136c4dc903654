"""Frame lists and folders: any published naming in, windows that never jump over a gap out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import FrameError
from pipeline.frames.images import crop_resize, read_frames
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import Video, describe_frames, scan_frames
from pipeline.frames.tars import Rejected
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows

ROOT = Path(__file__).parents[3]


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)
    return str(path)


def names(root: Path) -> dict[str, int]:
    return {f"{v.split}:{v.name}": len(v.frames) for v in scan_frames(root).videos}


def test_the_published_lists(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "train" / f"a_b_{number:04d}.png")
        picture(tmp_path / "elsewhere" / f"c_{number:04d}.jpg")
    (tmp_path / "train.txt").write_text("".join(f"train/a_b_{n:04d}.png\n" for n in (2, 0, 1)))
    (tmp_path / "test.txt").write_text(
        "".join(f"{tmp_path}/elsewhere/c_{n:04d}.jpg\n" for n in range(3))
    )
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:train/a_b": 3, "test:elsewhere/c": 3}
    assert [Path(frame).name for frame in found.videos[0].frames] == [
        f"a_b_{n:04d}.png" for n in range(3)
    ]


def test_a_folder_per_video_without_lists(tmp_path: Path) -> None:
    for number in range(9, 12):  # Unpadded: 10 comes after 9.
        picture(tmp_path / "one" / f"{number}.png", value=number)
        picture(tmp_path / "two" / f"frame{number}.{'jpg' if number % 2 else 'PNG'}")
    (tmp_path / "one" / "notes.txt").write_text("")
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden" / "1.png")
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:one": 3, "train:two/frame": 3}
    frames = read_frames(found.videos[0].frames, size=8)
    assert frames[:, 0, 0, 0].tolist() == [9, 10, 11]
    assert [rejected.reason for rejected in found.rejected] == ["no image by its extension"]
    assert found.num_files == 7 == 6 + len(found.rejected)


def test_gaps_and_repeats(tmp_path: Path) -> None:
    for number in (0, 1, 2, 4, 5, 9):
        picture(tmp_path / "v" / f"{number:03d}.png")
    picture(tmp_path / "v" / "0001.png")
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:v": 3, "train:v#2": 2, "train:v#3": 1}
    assert [rejected.reason for rejected in found.rejected] == ["another file has frame number 1"]


def test_every_video_has_a_name_of_its_own(tmp_path: Path) -> None:
    for stem in ("a000", "a-000", "a_000", "a__000"):
        picture(tmp_path / f"{stem}.png")
    for stem in ("x/0", "x/2", "x#2/0", "b/b_0", "b/0", "b/b/0"):
        picture(tmp_path / f"{stem}.png")
    found = scan_frames(tmp_path).videos
    assert {video.name: Path(video.frames[0]).name for video in found} == {
        "a": "a000.png",
        "a-": "a-000.png",
        "a_": "a_000.png",
        "a__": "a__000.png",
        "x": "0.png",
        "x#2": "2.png",
        "x#2~2": "0.png",
        "b": "0.png",
        "b/b": "b_0.png",
        "b/b~2": "0.png",
    }
    assert len(found) == 10


def test_a_plan_needs_unique_names() -> None:
    twice = [Video("a", "train", ("0.png",)), Video("a", "train", ("1.png",))]
    with pytest.raises(AssertionError, match="names repeat"):
        plan_windows(twice, TokenizeConfig(frames=1))


def test_splits_by_folder(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "0.png")
    picture(tmp_path / "test" / "a" / "0.png")
    assert names(tmp_path) == {"train:train/a": 1, "test:test/a": 1}


def test_what_lies_beside_the_split_folders_is_rejected(tmp_path: Path) -> None:
    for path in ("test/a/0.png", "A/0.png", "B/0.png", "cover.jpg"):
        picture(tmp_path / path)
    (tmp_path / "notes.txt").write_text("")
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"test:test/a": 1}
    assert {Path(r.name).relative_to(tmp_path).as_posix(): r.reason for r in found.rejected} == {
        path: "outside of test/" for path in ("A/0.png", "B/0.png", "cover.jpg")
    }
    assert found.num_files == 4


def test_dangling_links_and_folders_named_like_images_are_rejected(tmp_path: Path) -> None:
    picture(tmp_path / "v" / "0.png")
    (tmp_path / "v" / "1.png").symlink_to("gone.png")
    (tmp_path / "v" / "2.png").mkdir()
    (tmp_path / "w").symlink_to("v")
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:v": 1}
    assert {Path(r.name).relative_to(tmp_path).as_posix(): r.reason for r in found.rejected} == {
        "v/1.png": "a link that leads nowhere",
        "v/2.png": "a folder, though named like a file",
        "w": "a link to a folder, which is not followed",
    }
    assert found.num_files == 4


def test_links_to_files_are_those_files_wherever_they_lie(tmp_path: Path) -> None:
    outside = tmp_path / "cache"
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    for number in range(3):
        blob = picture(outside / f"0a{number}.png", value=50 * number)
        (root / "b" / f"b_{number}.png").symlink_to(blob)
    (root / "b" / "twice").symlink_to(root / "b")
    found = scan_frames(root)
    assert names(root) == {"train:b": 3}
    assert read_frames(found.videos[0].frames, size=8)[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert [rejected.reason for rejected in found.rejected] == [
        "a link to a folder, which is not followed"
    ]


def test_a_split_folder_that_is_a_link_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a" / "0.png")
    picture(tmp_path / "root" / "test" / "b" / "0.png")
    (tmp_path / "root" / "train").symlink_to(tmp_path / "elsewhere")
    found = scan_frames(tmp_path / "root")
    assert names(tmp_path / "root") == {"test:test/b": 1}
    assert [(Path(r.name).name, r.reason) for r in found.rejected] == [
        ("train", "a link to a folder, which is not followed")
    ]


def test_lists_cannot_lead_out(tmp_path: Path) -> None:
    picture(tmp_path / "a_0.png")
    picture(tmp_path / "root" / "b" / "b_0.png")
    (tmp_path / "root" / "train.txt").write_text("../a_0.png\nb/b_0.png\n")
    (rejected,) = scan_frames(tmp_path / "root").rejected
    assert (rejected.name, rejected.reason) == (
        "../a_0.png",
        "leads out of the folder of its list",
    )


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b""])
def test_lists_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(
    tmp_path: Path, mark: bytes
) -> None:
    for number in range(3):
        picture(tmp_path / "v\u00e9\u2028" / f"{number}.png")
    lines = "".join(f"v\u00e9\u2028/{number}.png\r\n" for number in range(3))
    codec = "utf-16-le" if mark == b"\xff\xfe" else "utf-8"
    (tmp_path / "train.txt").write_bytes(mark + lines.encode(codec))
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:v\u00e9\u2028": 3}
    assert not found.rejected
    assert source_fingerprint(found.videos, tmp_path)


IN_C = """
import sys
from pathlib import Path
from pipeline.config import load_params
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import scan_frames
root = Path(sys.argv[1])
found = scan_frames(root)
assert not found.rejected
print(ascii([video.name for video in found.videos]), source_fingerprint(found.videos, root))
print(ascii(load_params(root / "params.yaml")))
"""


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "v\u00e9" / f"{number}.png")
    (tmp_path / "train.txt").write_text("".join(f"v\u00e9/{n}.png\n" for n in range(3)), "utf-8")
    (tmp_path / "params.yaml").write_text("# \u00e9\ndecode: {fps: 8.0}\n", "utf-8")
    said = []
    for flag in ("utf8=1", "utf8=0"):
        command = [sys.executable, "-X", flag, "-c", IN_C, str(tmp_path)]
        environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].startswith(r"['v\xe9']")


def test_names_that_no_file_should_have_are_rejected_by_name(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "v" / f"{number}.png")
        picture(Path(os.fsdecode(b"%s/bad\xff_%d.png" % (os.fsencode(tmp_path), number))))
    bad = rf"{tmp_path}/bad\udcff_"
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:v": 3}
    expected = {Rejected(f"{bad}{number}.png", "its name is not UTF-8") for number in range(3)}
    assert set(found.rejected) == expected
    long = "x" * 256
    lines = b"v/0.png\nv/1.png\nbad\xff_0.png\n%s.png\nv\0/3.png\n" % long.encode()
    (tmp_path / "train.txt").write_bytes(lines)
    found = scan_frames(tmp_path)
    assert names(tmp_path) == {"train:v": 2}
    assert found.rejected == [
        Rejected(f"{long}.png", "no file can have such a name"),
        Rejected(r"v\x00/3.png", "no file can have such a name"),
        Rejected(f"{bad}0.png", "its name is not UTF-8"),
    ]


def test_frames_numbered_in_steps_are_a_video_and_the_step_is_said(tmp_path: Path) -> None:
    for number in range(0, 50, 5):
        picture(tmp_path / "a" / f"{number:04d}.png", value=number)
        picture(tmp_path / "b" / f"{number:04d}.png")
    for number in (0, 3, 14, 20, 24, 40):
        picture(tmp_path / "c" / f"{number}.png")
    videos = scan_frames(tmp_path).videos
    assert read_frames(videos[0].frames, size=8)[:, 0, 0, 0].tolist() == list(range(0, 50, 5))
    jumps = "frame numbers jump by 3 to 16, and a jump ends a video; number frames consecutively"
    assert describe_frames(videos, as_stored=False) == [
        "a and 1 more: frames are numbered in steps of 5",
        f"c and 5 more: {jumps} if none is missing",
    ]
    plan = plan_windows(videos, TokenizeConfig(frames=8, size=8))
    assert plan.num_windows("train") == 6
    assert plan.rejected[0].reason.startswith(f"1 frames, shorter than a window of 8; {jumps}")
    with pytest.raises(FrameError, match=f"no window fits: .* In c, {jumps}"):
        plan_windows(videos[2:], TokenizeConfig(frames=8, size=8))


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="holds no video: 0 files"):
        scan_frames(tmp_path)
    picture(tmp_path / "cover.png")
    with pytest.raises(FrameError, match=r"1 files, none usable; for example .*cover\.png"):
        scan_frames(tmp_path)
    with pytest.raises(FrameError, match="is not a folder"):
        scan_frames(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "v" / "0.png"
    path.parent.mkdir()
    grey = 255 if mode == "1" else 204
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), grey * 257, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (8, 8), (grey, grey, grey)).convert(mode).save(path)
    np.testing.assert_array_equal(read_frames([str(path)], size=8), grey)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), 0.5, np.float32), "holds floats"),
        (np.full((8, 8), 200, np.int32), "holds 32-bit values 200 to 200"),
        (np.full((8, 8), 70_000, np.int32), "holds 32-bit values 70000 to 70000"),
        (np.full((8, 8), -1, np.int32), "holds 32-bit values -1 to -1"),
    ],
)
def test_numbers_of_unknown_range_are_refused(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    Image.fromarray(values).save(tmp_path / "0.tif")
    with pytest.raises(FrameError, match=rf"0\.tif {message}"):
        read_frames([str(tmp_path / "0.tif")], size=8)


def test_dark_16_bit_pgm_stays_dark(tmp_path: Path) -> None:
    for number, grey in enumerate((200, 51_400)):
        raw = np.full(64, grey, ">u2").tobytes()
        (tmp_path / f"{number}.pgm").write_bytes(b"P5 8 8 65535\n" + raw)
    frames = read_frames([str(tmp_path / f"{number}.pgm") for number in (0, 1)], size=8)
    assert frames[:, 0, 0, 0].tolist() == [0, 200]


def test_the_centre_square_is_kept() -> None:
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:7] = 255
    assert np.asarray(crop_resize(Image.fromarray(image), 4)).min() == 255


def test_the_source_changes_with_the_files(tmp_path: Path) -> None:
    picture(tmp_path / "v" / "0.png")
    before = source_fingerprint(scan_frames(tmp_path).videos, tmp_path)
    assert source_fingerprint(scan_frames(tmp_path).videos, tmp_path) == before
    picture(tmp_path / "v" / "1.png")
    assert source_fingerprint(scan_frames(tmp_path).videos, tmp_path) != before


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "tif"])
def test_the_source_changes_when_a_raw_frame_is_repainted(tmp_path: Path, suffix: str) -> None:
    path = Path(picture(tmp_path / "v" / f"0.{suffix}", value=1))
    before = source_fingerprint(scan_frames(tmp_path).videos, tmp_path)
    size = path.stat().st_size
    picture(path, value=2)
    assert path.stat().st_size == size
    assert source_fingerprint(scan_frames(tmp_path).videos, tmp_path) != before


@pytest.mark.parametrize("cache_bytes", [0, 1000, 1 << 30])
def test_a_window_is_its_frames_whatever_is_cached(tmp_path: Path, cache_bytes: int) -> None:
    for video in "ab":
        for number in range(20):
            picture(tmp_path / video / f"{number}.png", value=number * (2 if video == "b" else 1))
    videos = scan_frames(tmp_path).videos
    config = TokenizeConfig(frames=4, stride=3, hop=5, size=8, shard_windows=2, chunk_windows=1)
    plan = plan_windows(videos, config)
    reader = WindowReader(videos, config, cache_bytes=cache_bytes)
    rows = plan.table.to_pylist()
    assert sorted((row["video"], row["first_frame"]) for row in rows) == [
        (video, first) for video in "ab" for first in (0, 5, 10)
    ]
    assert [row["shard"] for row in rows] == [0, 0, 1, 1, 2, 2]
    for row in rows:
        window = reader.pixels("train", row["video"], row["first_frame"])
        factor = 2 if row["video"] == "b" else 1
        numbers = range(row["first_frame"], row["first_frame"] + 10, 3)
        assert window[:, 0, 0, 0].tolist() == [number * factor for number in numbers]


def test_short_videos_are_named(tmp_path: Path) -> None:
    for number in range(9):
        picture(tmp_path / "long" / f"{number}.png")
    picture(tmp_path / "short" / "0.png")
    plan = plan_windows(scan_frames(tmp_path).videos, TokenizeConfig(frames=8, size=8))
    assert plan.num_windows("train") == 2
    assert [(r.name, r.reason) for r in plan.rejected] == [
        ("short", "1 frames, shorter than a window of 8")
    ]


def test_a_png_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v_0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    data = path.read_bytes()
    pixels = range(data.index(b"IDAT") + 4, len(data) - 20, 7)
    for position in (*range(8, 33), *pixels):  # The first chunk: its length, name, and sizes.
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        with pytest.raises(FrameError, match=r"v_0\.png is not a readable image"):
            read_frames([str(path)], size=8)
