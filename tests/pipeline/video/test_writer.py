"""What we write for eyes: the same bytes, the same colours and the same pace everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from pipeline.video.synthetic import moving_shapes
from pipeline.video.writer import shown_every, write_animation, write_mp4

WRITE = """
import sys
from pathlib import Path
import numpy as np
from pipeline.video.writer import write_mp4
for side in (48, 64):
    y, x = np.mgrid[:side, :side]
    far = [((x - side * (0.2 + t / 25)) ** 2 + (y - 30) ** 2) / side for t in range(16)]
    frames = (230 - 180 * np.exp(-np.stack(far))[..., None].repeat(3, axis=3)).astype(np.uint8)
    write_mp4(Path(sys.argv[1]) / f"{side}.mp4", frames, fps=8)
"""


def test_equal_frames_make_equal_files_whatever_was_in_memory_before(tmp_path: Path) -> None:
    """With AVX-512, libx264 165 reads memory that nobody wrote, where it is free to choose."""
    files = []
    for number, filling in enumerate(("0", "85", "255")):
        folder = tmp_path / filling
        folder.mkdir()
        paths = os.pathsep.join(sys.path)
        environment = {**os.environ, "MALLOC_PERTURB_": filling, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", WRITE, str(folder)], env=environment, check=True)
        files.append([path.read_bytes() for path in sorted(folder.iterdir())])
        assert files[number] == files[0]


def test_the_encoder_is_given_no_instructions_that_processors_lack(tmp_path: Path) -> None:
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as said:
            write_mp4(tmp_path / "v.mp4", np.zeros((2, 16, 16, 3), np.uint8), fps=8)
    finally:
        av.logging.set_level(level)
    assert any("using cpu capabilities: none" in text for _, _, text in said)


def test_a_fixed_quantiser_follows_no_statistics(tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", np.zeros((2, 16, 16, 3), np.uint8), fps=8)
    options = (tmp_path / "v.mp4").read_bytes()
    assert b"rc=cqp mbtree=0" in options
    assert b"aq=0" in options


COLOURS = np.array(
    [
        [(220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230)],
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)],
        [(255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255)],
        [(128, 128, 128), (180, 90, 20), (90, 20, 180), (20, 180, 90)],
    ],
    np.uint8,
)


@pytest.mark.parametrize("lines", [64, 720, 1080])
def test_saturated_colours_come_back_and_the_file_names_its_matrix(
    tmp_path: Path, lines: int
) -> None:
    picture = COLOURS.repeat(lines // 4, axis=0).repeat(16, axis=1)
    write_mp4(tmp_path / "v.mp4", np.stack([picture] * 2), fps=8)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0].codec_context
        assert stream.colorspace == Colorspace.ITU709
        assert stream.color_primaries == ColorPrimaries.BT709
        assert stream.color_trc == ColorTrc.BT709
        assert stream.color_range == ColorRange.MPEG
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1]
    assert b"colrnclx" in (tmp_path / "v.mp4").read_bytes()  # For players that ask the container.
    inside = shown[lines // 8 :: lines // 4, 8::16]
    assert np.abs(inside.astype(int) - COLOURS).max() <= 4


def test_white_black_and_grey_have_the_levels_of_bt_709(tmp_path: Path) -> None:
    picture = np.array([0, 128, 255], np.uint8).repeat(16)[None, :, None].repeat(16, axis=0)
    write_mp4(tmp_path / "v.mp4", picture.repeat(3, axis=2)[None], fps=8)
    with av.open(str(tmp_path / "v.mp4")) as container:
        (frame,) = container.decode(video=0)
        planes = frame.to_ndarray()
    assert np.abs(planes[8, 8:48:16].astype(int) - [16, 126, 235]).max() <= 1
    assert np.abs(planes[16:].astype(int) - 128).max() <= 1


def delays(path: Path) -> list[int]:
    """Returns how long each frame of an animation is shown, in thousandths of a second."""
    found = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            found.append(int(image.info["duration"]))
    return found


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize(
    "fps", [0.5, 7.5, 8, 12, 24, 25, 30000 / 1001, 30, 45, 50, 60, 90, 120, 240]
)
def test_an_animation_plays_at_its_very_rate(tmp_path: Path, kind: str, fps: float) -> None:
    frames = np.stack(list(moving_shapes(31, 16, seed=0)))
    path = tmp_path / f"v.{kind}"
    write_animation(path, frames, fps=fps)
    found = delays(path)
    tick, shortest = {"gif": (10, 20), "webp": (1, 11)}[kind]
    assert sum(found) == round(31 / fps * 1000 / tick) * tick
    assert min(found) >= shortest  # Browsers take what is shorter for a tenth of a second.
    step = shown_every(path.suffix, fps)
    assert len(found) == 31 // step
    for number, end in enumerate(np.cumsum(found)[:-1], start=1):
        assert abs(end - number * step / fps * 1000) <= tick / 2 + 1e-6


@pytest.mark.parametrize(
    ("kind", "fps", "step"),
    [("gif", 50, 1), ("gif", 51, 2), ("gif", 120, 3), ("webp", 90, 1), ("webp", 100, 2)],
)
def test_what_is_too_fast_for_a_format_shows_each_nth_frame(
    tmp_path: Path, kind: str, fps: float, step: int
) -> None:
    levels = np.arange(12, dtype=np.uint8) * 20
    frames = np.broadcast_to(levels[:, None, None, None], (12, 16, 16, 3)).copy()
    write_animation(tmp_path / f"v.{kind}", frames, fps=fps)
    assert shown_every(f".{kind}", fps) == step
    with Image.open(tmp_path / f"v.{kind}") as image:
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB")).mean())
    np.testing.assert_allclose(shown, levels[::step], atol=3)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_frames_that_do_not_change_take_their_time(tmp_path: Path, kind: str) -> None:
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    frames[5:] = 200
    write_animation(tmp_path / f"v.{kind}", frames, fps=24)
    assert sum(delays(tmp_path / f"v.{kind}")) == {"gif": 380, "webp": 375}[kind]


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    for kind in ("gif", "webp"):
        write_animation(tmp_path / f"v.{kind}", np.zeros((1, 16, 16, 3), np.uint8), fps=120)
        with Image.open(tmp_path / f"v.{kind}") as image:
            assert image.size == (16, 16)
