"""`mebt init`: every key explained, values that fit the footage, and what it refuses."""

import dataclasses
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mebt import MeBTShape
from pipeline.config import build, load_params, load_section
from pipeline.errors import FrameError
from pipeline.params.choose import Machine, fitted
from pipeline.params.file import explanations
from pipeline.params.survey import Seen, look
from pipeline.video.tiles import ExtractConfig
from pipeline.windows.plan import TokenizeConfig
from stages.__main__ import cli
from stages.sections import OWNERS, complete, owner
from stages.tokenizer_task import FitTokenizerConfig

ROOT = Path(__file__).parents[2]
LAPTOP, SERVER = Machine(2, 8.0), Machine(32, 256.0, gpu_gb=80.0)


def init(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["init", *map(str, words)])


def film(rate: float = 25.0, frames: int = 1000, size: tuple[int, int] = (320, 240)) -> Seen:
    return Seen(Path("a.mp4"), *size, rate, frames)


def write_video(path: Path, *, rate: int = 25, count: int = 50, codec: str = "libx264") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(count):
            pixels = np.full((64, 96, 3), 5 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("section", OWNERS)
def test_every_key_is_explained(section: str) -> None:
    cls = owner(section)
    keys = [field.name for field in dataclasses.fields(cls)]
    assert [key for key in keys if not explanations(cls).get(key)] == []


def test_the_shipped_params_leave_pictures_as_they_are() -> None:
    config = load_section(ROOT / "params.yaml", "extract", ExtractConfig)
    assert (config.filters, config.fps, config.tile, config.tile_hop) == ((), None, None, None)
    assert (config.clip_frames, config.min_motion) == (None, 0.0)


def test_a_comment_stands_above_every_key(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/a.mp4")
    assert init("--videos", tmp_path / "videos", "--out", tmp_path / "p.yaml").exit_code == 0
    lines = (tmp_path / "p.yaml").read_text().splitlines()
    keys = [n for n, line in enumerate(lines) if line[:2] == "  " and line[2] not in "# "]
    assert len(keys) == sum(len(dataclasses.fields(owner(section))) for section in OWNERS)
    assert all(lines[n - 1].startswith("  # ") for n in keys)
    assert max(map(len, lines)) <= 100
    for section in OWNERS:
        load_section(tmp_path / "p.yaml", section, owner(section))


@pytest.mark.parametrize(
    ("rates", "fps"),
    [
        ([25.0], None),
        ([24.0, 25.0], None),
        ([29.97, 30.0], None),
        ([25.0, 29.97, 60.0], 25.0),
        ([24000 / 1001, 30.0], 23.976),
    ],
)
def test_videos_of_several_rates_get_the_least_of_them(
    rates: list[float], fps: float | None
) -> None:
    values = fitted([film(rate, round(20 * rate)) for rate in rates], LAPTOP).values
    assert values["extract"]["fps"] == fps


def test_a_short_slow_animation_sets_neither_rate_nor_window_for_all() -> None:
    values = fitted([film(30.0, 360), film(25.0, 250), film(10.0, 30)], LAPTOP).values
    assert values["extract"]["fps"] == 25.0
    assert values["tokenize"]["frames"] == 16


@pytest.mark.parametrize(
    ("size", "machine", "expected"),
    [
        ((1920, 1080), LAPTOP, 64),
        ((1920, 1080), SERVER, 128),
        ((90, 61), LAPTOP, 56),
        ((100, 500), SERVER, 96),
    ],
)
def test_frames_are_no_larger_than_the_videos(
    size: tuple[int, int], machine: Machine, expected: int
) -> None:
    values = fitted([film(), film(size=size)], machine).values
    assert values["extract"]["size"] == values["tokenize"]["size"] == expected


@pytest.mark.parametrize("machine", [LAPTOP, SERVER], ids=["laptop", "server"])
@pytest.mark.parametrize("rate", [8.0, 25.0, 60.0, 240.0])
@pytest.mark.parametrize("length", [8, 15, 16, 31, 32, 33, 100, 300, 400_000])
def test_both_splits_of_a_usual_video_hold_a_window(
    length: int, rate: float, machine: Machine
) -> None:
    values = fitted([film(rate, length)], machine).values
    config = TokenizeConfig(**values["tokenize"])
    test = round(length * values["extract"]["test_share"])
    assert config.span <= test
    assert config.span <= length - test
    assert config.frames % 4 == 0


def test_a_high_rate_makes_windows_of_every_other_frame() -> None:
    strides = [
        fitted([film(rate)], LAPTOP).values["tokenize"].get("stride", 1)
        for rate in (10.0, 30.0, 60.0, 120.0)
    ]
    assert strides == [1, 1, 2, 4]


@pytest.mark.parametrize(
    ("minutes", "codes", "hop"), [(1, 64, 1), (20, 256, 4), (100, 1024, 16), (6000, 1024, 16)]
)
def test_more_footage_means_more_codes_and_fewer_starts(minutes: int, codes: int, hop: int) -> None:
    values = fitted([film(25.0, 1500)] * minutes, LAPTOP).values
    assert values["tokenizer"]["codebook_size"] == codes
    assert values["tokenize"]["hop"] == hop


def test_a_gpu_gets_a_larger_model_and_a_small_one_smaller_batches() -> None:
    small = Machine(8, 32.0, gpu_gb=8.0)
    laptop, server, modest = (fitted([film()], m).values for m in (LAPTOP, SERVER, small))
    assert laptop["model"]["width"] < server["model"]["width"] == modest["model"]["width"]
    assert server["train"]["batch_size"] == 2 * modest["train"]["batch_size"]
    assert laptop["train"]["memory_gb"] <= 2.0  # A quarter of 8 GB.


@pytest.mark.parametrize("machine", [LAPTOP, SERVER, Machine(64, 2.0), Machine(4, 16, 8.0)])
def test_all_values_are_taken_by_their_sections(machine: Machine) -> None:
    assert set(complete(fitted([film()], machine).values, where="init")) == set(OWNERS)


@pytest.mark.parametrize(
    ("machine", "frames", "latents"),
    [(LAPTOP, 32, 0), (LAPTOP, 64, 128), (SERVER, 32, 0), (SERVER, 64, 256), (SERVER, 128, 256)],
)
def test_long_windows_get_layers_with_latent_tokens(
    machine: Machine, frames: int, latents: int
) -> None:
    choice = fitted([film(frames=400), film(frames=60)], machine, frames)
    values = complete(choice.values, where="init")
    window = build(TokenizeConfig, values["tokenize"], where="tokenize")
    shape = build(MeBTShape, values["model"], where="model")
    fit = build(FitTokenizerConfig, values["fit_tokenizer"], where="fit_tokenizer")
    assert (window.frames, shape.num_latents) == (frames, latents)
    assert shape.width == (512 if machine is SERVER else 128 if latents else 192)
    assert ("dense" in shape.layers) == (latents == 0)
    test = round(400 * values["extract"]["test_share"])
    assert window.span <= min(test, 400 - test)
    assert window.batch_size * frames == {LAPTOP: 8, SERVER: 16}[machine] * 16
    assert fit.windows(window).frames == 16
    assert "of your footage that is long enough is in" in choice.reasons["tokenize.frames"]


def test_usual_windows_leave_the_tokenizer_s_to_them() -> None:
    values = complete(fitted([film()], LAPTOP).values, where="init")
    assert values["fit_tokenizer"]["frames"] is None


def test_a_window_longer_than_any_video_is_refused() -> None:
    with pytest.raises(FrameError, match=r"a\.mp4, has 100 frames, too few .* of 64 frames each"):
        fitted([film(frames=100)], LAPTOP, 64)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--videos", ".", "--frames", "30"), "30 is no multiple of 4"),
        (("--frames", "64"), "--frames is of videos."),
    ],
)
def test_frames_of_no_whole_tokens_are_wrong_usage(
    tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    result = init(*words, "--out", tmp_path / "params.yaml")
    assert result.exit_code == 2
    assert line in result.output


def test_the_frames_that_are_asked_for_are_written(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/a.mp4", count=130)
    out = tmp_path / "params.yaml"
    result = init("--videos", tmp_path / "videos", "--frames", "64", "--out", out)
    assert result.exit_code == 0, result.output
    assert "a window has 1,024 tokens" in result.output
    assert load_params(out)["tokenize"]["frames"] == 64


def test_videos_too_short_for_any_window_are_refused() -> None:
    with pytest.raises(FrameError, match=r"longest of 3 videos, a\.mp4, has 7 frames, too few"):
        fitted([film(frames=5), film(frames=7), film(frames=5)], LAPTOP)


def test_videos_too_short_for_any_window_do_not_stop_the_others() -> None:
    choice = fitted([film(frames=5), film(frames=7), film(frames=100)], LAPTOP)
    assert choice.values["tokenize"]["frames"] == 16
    assert "2 videos are shorter than a window" in choice.reasons["tokenize.hop"]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("b.avi", "mpeg4")]
)
def test_a_header_is_read_as_it_is(tmp_path: Path, name: str, codec: str) -> None:
    found = look(write_video(tmp_path / name, count=50, codec=codec))
    assert found is not None
    assert (found.width, found.height, found.rate) == (96, 64, 25.0)
    assert abs(found.frames - 50) <= 1


def test_a_stream_without_a_length_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", count=30)
    found = look(path)
    assert found is not None
    assert found.frames == 30


def test_what_is_no_video_is_counted_and_named(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_video(videos / "deep/a.mp4")
    Image.new("RGB", (64, 64)).save(videos / "photo.jpg")
    (videos / "notes.txt").write_text("No video.\n" * 100)
    (videos / "broken.mp4").write_bytes(b"\x00" * 100)
    result = init("--videos", videos, "--out", tmp_path / "params.yaml")
    assert result.exit_code == 0, result.output
    assert "1 video, 2.0 seconds in all, 25 frames a second, 96x64 pixels" in result.output
    assert "left aside, since they are no videos: 3, such as broken.mp4" in result.output
    assert load_params(tmp_path / "params.yaml")["extract"]["size"] == 64
    assert f"mebt extract --videos {videos} --out frames --params {tmp_path}" in result.output


@pytest.mark.parametrize("name", ["photo.png", "notes.txt", None])
def test_a_folder_without_a_video_is_one_clear_line(tmp_path: Path, name: str | None) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    if name == "photo.png":
        Image.new("RGB", (64, 64)).save(videos / name)
    elif name:
        (videos / name).write_text("text")
    result = init("--videos", videos, "--out", tmp_path / "params.yaml")
    assert result.exit_code == 1
    assert f"{videos} holds no video that FFmpeg knows" in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "params.yaml").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("mine")
    result = init("--out", path)
    assert result.exit_code == 1
    assert f"{path} exists; choose another --out, or give --overwrite." in result.output
    assert path.read_text() == "mine"
    assert init("--out", path, "--overwrite").exit_code == 0
    assert "extract" in load_params(path)


def test_an_editor_finds_the_schema_beside_the_params(tmp_path: Path) -> None:
    assert init("--out", tmp_path / "a.yaml").exit_code == 0
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", (tmp_path / "a.yaml").read_text())
    assert found
    schema = tmp_path / found[1]
    assert set(json.loads(schema.read_text())["properties"]) == set(OWNERS)
    assert init("--out", tmp_path / "b.yaml").exit_code == 0  # It is the same.
    schema.write_text("mine")
    result = init("--out", tmp_path / "c.yaml")
    assert result.exit_code == 1
    assert "is not the schema of this version; choose another folder for --out" in result.output
    assert schema.read_text() == "mine"
    assert not (tmp_path / "c.yaml").exists()
    assert init("--out", tmp_path / "c.yaml", "--overwrite").exit_code == 0
    assert "train" in json.loads(schema.read_text())["properties"]


def test_without_params_a_command_says_what_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["extract", "--synthetic", "1", "--out", "frames"])
    assert result.exit_code == 1
    assert "params.yaml does not exist; write one with `mebt init`" in result.output
