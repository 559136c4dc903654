"""`mebt continue`, `fill` and `inpaint`: from video to video, and one line for what cannot be."""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from benchmarks import seams
from mebt import CachedPredictor, MeBT, MeBTConfig, SampleConfig
from mebt import editing as token_editing
from pipeline.editing.clip import Clip
from pipeline.editing.edits import between, continued, inside
from pipeline.editing.shape import WindowShape
from pipeline.errors import ConfigError, FrameError
from pipeline.pixels import decode_tokens
from pipeline.store.window import Window
from pipeline.video.synthetic import moving_shapes
from stages import editing
from stages.__main__ import cli
from stages.edit_options import seam_lines
from stages.editing import Editor
from tests.helpers.small import Flow, content, make_tokenizer
from tokenizer import VQGAN, VQGANConfig

RATE = 25


def write(path: Path, count: int, *, height: int = 16, width: int = 24, seed: int = 5) -> Path:
    frames = list(moving_shapes(count, 24, seed=seed))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(RATE))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for frame in frames:
            part = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part)))
        container.mux(stream.encode())
    return path


def run(flow: Flow, command: str, *words: Path | str, out: str = "out", **more: str) -> Result:
    root = flow.root
    options = {
        **{"run": root / "run", "tokenizer": root / "tokenizer.safetensors", "out": root / out},
        **{"params": root / "params.yaml", **more},
    }
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    flags = [flag.removesuffix("=True") for flag in flags]
    return CliRunner().invoke(cli, [command, *map(str, words), *flags])


def ok(flow: Flow, command: str, *words: Path | str, **more: str) -> str:
    result = run(flow, command, *words, **more)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def refused(flow: Flow, command: str, *words: Path | str, **more: str) -> str:
    """Runs a command that must end with one clear line, and leave nothing."""
    result = run(flow, command, *words, **more)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.splitlines()
    assert not (flow.root / more.get("out", "out")).exists()
    return line


def exact(flow: Flow, out: str = "out") -> NDArray[np.uint8]:
    return np.asarray(zarr.open_array(flow.root / out / "frames.zarr", mode="r")[:])


def middle(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")[:, 4:20]


@pytest.fixture
def clip(flow: Flow) -> Path:
    return write(flow.root / "clip.mkv", 9)


def test_a_clip_goes_on(flow: Flow, clip: Path) -> None:
    said = ok(flow, "continue", clip, seconds="0.16", seeds="3", exact="True")
    real = np.stack(list(middle(clip)))
    made = exact(flow)
    assert made.shape == (3, 13, 16, 16, 3)
    assert (made[:, :9] == real).all()
    assert not (made[0, 9:] == made[1, 9:]).all()
    assert "9 frames, 25 a second; of its 24x16 pixels 16x16 at 4,0 are seen, as 16x16" in said
    assert "drawn anew: frames 9:13, 16x16 pixels, 32 of 48 tokens" in said
    assert "seam, frame to frame: PSNR " in said and "pixel to pixel" not in said
    assert "by chance 3.18" in said
    names = sorted(path.name for path in (flow.root / "out").iterdir() if path.name != ".lock")
    videos = [f"{number:05d}.mp4" for number in range(3)]
    assert names == [*videos, "edit.json", "frames.zarr", "metrics.json", "sheet.webp"]
    with av.open(str(flow.root / "out/00002.mp4")) as container:
        assert container.streams.video[0].average_rate == RATE
        assert len(list(container.decode(video=0))) == 13
    with Image.open(flow.root / "out/sheet.webp") as sheet:
        assert sheet.size == (4 * 18, 18)
        assert sheet.n_frames == 6  # Of 13: three windows of two latent frames, half by half.
    record = json.loads((flow.root / "out/metrics.json").read_text())
    assert record["frames_seen"] == [7, 13] and len(record["seam"]) == 3


def test_half_precision_keeps_the_same_pixels(flow: Flow, clip: Path) -> None:
    ok(flow, "continue", clip, seconds="0.1", exact="True", set="sample.precision=bf16-mixed")
    assert (exact(flow)[0, :9] == np.stack(list(middle(clip)))).all()
    assert json.loads((flow.root / "out/edit.json").read_text())["precision"] == "bf16-mixed"


def test_what_came_before_is_drawn_backward(flow: Flow, clip: Path) -> None:
    said = ok(flow, "continue", clip, seconds="0.2", backward="True", exact="True")
    assert "6 new frames, not 5: whole latent frames are drawn" in said
    assert (exact(flow)[0, 6:] == np.stack(list(middle(clip)))).all()


def test_a_gap_is_filled(flow: Flow, clip: Path) -> None:
    other = write(flow.root / "other.mkv", 5, seed=6)
    ok(flow, "fill", clip, other, seconds="0.08", exact="True", kept="2")
    made = exact(flow)
    assert made.shape == (1, 16, 16, 16, 3)
    assert (made[0, :9] == np.stack(list(middle(clip)))).all()
    assert (made[0, 11:] == np.stack(list(middle(other)))).all()


def test_a_box_is_drawn_anew(flow: Flow, clip: Path) -> None:
    said = ok(flow, "inpaint", clip, box="9,1,5,6", frames="2:5", exact="True")
    assert "drawn anew: frames 2:6, 8x8 pixels at 4,0, 8 of 64 tokens; asked for: " in said
    assert "frames 2:5, 5x6 pixels at 5,1; a token is of 2 frames of 4x4 pixels" in said
    assert "seam, pixel to pixel: PSNR" in said
    (made,), real = exact(flow), np.stack(list(middle(clip)))
    hidden = np.zeros(real.shape[:3], np.bool_)
    hidden[2:6, :8, 4:12] = True
    assert (made[~hidden] == real[~hidden]).all()
    assert not (made[hidden] == real[hidden]).all()


def test_a_mask_and_a_box_of_the_same_pixels_are_the_same(flow: Flow, clip: Path) -> None:
    ok(flow, "inpaint", clip, box="9,1,5,6", exact="True")
    mask = np.zeros((16, 24), np.uint8)
    mask[1:7, 9:14] = 255
    Image.fromarray(mask).save(flow.root / "mask.png")
    ok(flow, "inpaint", clip, mask=str(flow.root / "mask.png"), exact="True", out="masked")
    assert content(flow.root / "out") == content(flow.root / "masked")


def test_what_lies_outside_the_clip_is_drawn(flow: Flow, clip: Path) -> None:
    ok(flow, "inpaint", clip, crop="-8,0,16,16", exact="True")
    (made,) = exact(flow)
    with av.open(str(clip)) as container:
        real = np.stack([x.to_ndarray(format="rgb24") for x in container.decode(video=0)])
    assert (made[:, :, 8:] == real[:, :, :8]).all()
    assert made[:, :, :8].any()


def test_every_other_latent_frame_is_drawn(flow: Flow, clip: Path) -> None:
    ok(flow, "inpaint", clip, every="2", exact="True")
    (made,), real = exact(flow), np.stack(list(middle(clip)))
    kept = [0, 1, 4, 5, 8]
    assert (made[kept] == real[kept]).all()
    assert all((made[n] != real[n]).any() for n in (2, 3, 6, 7))


def test_the_same_again_is_the_same_and_other_values_are_refused(flow: Flow, clip: Path) -> None:
    ok(flow, "inpaint", clip, frames="2:4", exact="True")
    before = content(flow.root / "out")
    ok(flow, "inpaint", clip, frames="2:4", exact="True", set="sample.batch_size=1")
    assert content(flow.root / "out") == before
    for more in ({"frames": "4:6"}, {"set": "sample.seed=4"}, {"seeds": "2"}):
        result = run(flow, "inpaint", clip, **{"frames": "2:4", "exact": "True", **more})
        assert result.exit_code == 1
        assert "was made with " in result.output.splitlines()[-1]
        assert content(flow.root / "out") == before
    ok(flow, "inpaint", clip, frames="2:4", exact="True", set="sample.seed=4", overwrite="True")
    assert content(flow.root / "out") != before


def test_a_draw_does_not_know_how_many_there_are(flow: Flow, clip: Path) -> None:
    many = ("continue", clip)
    ok(flow, *many, seconds="0.1", seeds="3", exact="True", set="sample.batch_size=2")
    ok(flow, *many, seconds="0.1", exact="True", out="one")
    assert (exact(flow)[0] == exact(flow, "one")[0]).all()


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("inpaint", {"box": "20,0,8,8"}, "box 20,0,8,8 lies outside"),
        ("inpaint", {"frames": "4:10"}, "frames 4:10 are not in"),
        ("inpaint", {}, "nothing is asked for, so there is nothing to draw"),
        ("inpaint", {"box": "0,0,24,16"}, "all would be drawn and nothing kept"),
        ("inpaint", {"crop": "30,0,8,8"}, "--crop 30,0,8,8 shows nothing of"),
        ("inpaint", {"box": "4,0,4,4", "set": "sample.top_k=25"}, "sample.top_k is 25, but there"),
        ("continue", {"kept": "4"}, "4 kept frames leave no room for new ones: a window has 4"),
        (
            "continue",
            {"set": "sample.precision=16-mixed", "device": "cpu"},
            "does not work on a CP",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    flow: Flow, clip: Path, command: str, more: dict[str, str], said: str
) -> None:
    assert said in refused(flow, command, clip, **more)


def test_files_that_do_not_fit_are_one_line(flow: Flow, clip: Path) -> None:
    short = write(flow.root / "short.mkv", 1)
    assert "has 1 frames, but 2 of them are to be kept" in refused(flow, "continue", short)
    assert "has 1 frames, but 2 of them are to be kept" in refused(flow, "fill", clip, short)
    Image.new("L", (8, 8), 255).save(flow.root / "mask.png")
    line = refused(flow, "inpaint", clip, mask=str(flow.root / "mask.png"))
    assert "mask.png is 8x8 pixels, but " in line
    Image.new("L", (24, 16), 0).save(flow.root / "mask.png")
    assert "is black" in refused(flow, "inpaint", clip, mask=str(flow.root / "mask.png"))
    other = str(make_tokenizer(flow.root / "other.safetensors", seed=1))
    line = refused(flow, "continue", clip, tokenizer=other)
    assert "model.safetensors has tokenizer " in line and f"{other} has " in line
    assert "Give the tokenizer that made the model's tokens" in line
    (flow.root / "text.mp4").write_text("no video")
    assert "text.mp4" in refused(flow, "continue", flow.root / "text.mp4")
    assert "model.safetensors is missing" in refused(
        flow, "continue", clip, run=str(flow.root / "frames")
    )
    result = run(flow, "continue", clip, out=".")
    assert "which is read; choose another place" in result.output


@pytest.mark.parametrize(
    "more",
    [
        {"box": "1,2,3"},
        {"box": "0,0,0,4"},
        {"frames": "3"},
        {"frames": "-1:4"},
        {"box": "0,0,4,4", "mask": __file__},
        {"every": "1"},
        {"seeds": "0"},
    ],
)
def test_what_is_no_box_and_no_range_is_wrong_usage(
    flow: Flow, clip: Path, more: dict[str, str]
) -> None:
    result = run(flow, "inpaint", clip, **more)
    assert result.exit_code == 2
    assert not (flow.root / "out").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [("continue", "--seconds=nan"), ("fill", "--seconds=nan"), ("play", "--temperature=nan")],
)
def test_what_is_no_number_is_wrong_usage(
    flow: Flow, clip: Path, command: str, option: str
) -> None:
    clips = {"continue": [clip], "fill": [clip, clip], "play": []}[command]
    words = [option, "1"] if command == "play" else [option]
    result = CliRunner().invoke(cli, [command, *map(str, clips), *words])
    assert result.exit_code == 2
    assert "'nan' is no number." in result.output


def test_long_videos_are_decoded_in_pieces(
    flow: Flow, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Editor.open(flow.root / "run", flow.root / "tokenizer.safetensors")
    edit = continued(editor.read(clip), 40, editor.shape)
    config = SampleConfig(draft_steps=1)
    (whole,) = editor.edit(edit, config)
    monkeypatch.setattr(editing, "PIECE_FRAMES", 2)
    (pieces,) = editor.edit(edit, config)
    assert np.abs(whole.astype(int) - pieces.astype(int)).max() <= 1
    monkeypatch.setattr(editing, "MOST_BYTES", 3 * edit.frames.nbytes - 1)
    with pytest.raises(ConfigError, match=r"3 videos of 49 frames are 0\.0 GB, and all"):
        editor.edit(edit, config, count=3)


def test_edits_that_cannot_be_are_one_line_in_python_too(clip: Path, flow: Flow) -> None:
    editor = Editor.open(flow.root / "run", flow.root / "tokenizer.safetensors")
    read, shape = editor.read(clip), editor.shape
    mask = np.ones((3, 5), np.bool_)
    for plan, said in (
        (lambda: continued(read, -4, shape), "-4 new frames are none to draw"),
        (lambda: between(read, read, 0, shape), "0 new frames are none to draw"),
        (lambda: continued(read, 4, shape, kept=0), "0 kept frames are none to go on from"),
        (lambda: inside(read, shape, frames=slice(0, 8, 2), pixels=None), "0:8:2 leave out some"),
        (lambda: inside(read, shape, frames=slice(0, 8), pixels=mask), r"a mask of \[3, 5\]"),
    ):
        with pytest.raises((ConfigError, FrameError), match=said):
            plan()


def test_from_python(flow: Flow, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = Editor.open(flow.root / "run", flow.root / "tokenizer.safetensors")
    read = editor.read(clip)
    edit = inside(read, editor.shape, frames=slice(2, 5), pixels=read.box((9, 1, 5, 6)))
    drawn: list[torch.Tensor] = []

    def noted(*args: object, **kwargs: object) -> torch.Tensor:
        drawn.append(token_editing.edit(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(editing, "edit_tokens", noted)
    videos = editor.edit(edit, SampleConfig(draft_steps=2), count=2)
    (tokens,) = drawn
    for video, grid in zip(videos, tokens.numpy(), strict=True):
        decoded = decode_tokens(editor.tokenizer, grid[None])[0]
        span = slice(edit.span.start, edit.span.stop)
        hidden = edit.hidden[span]
        assert (video[span][hidden] == decoded[hidden]).all()
        assert (video[~edit.hidden] == read.frames[~edit.hidden]).all()
    dark = inside(read, editor.shape, frames=slice(2, 5), pixels=read.box((9, 1, 5, 6)))
    dark.frames[dark.hidden] = 0  # What is hidden is not seen by the model, either.
    assert all(
        (x[dark.hidden] == y[dark.hidden]).all()
        for x, y in zip(
            editor.edit(dark, SampleConfig(draft_steps=2), count=2), videos, strict=True
        )
    )
    loss, chance = editor.surprise(continued(read, 4, editor.shape)) or (0, 0)
    assert 0 < loss < 2 * chance


def test_a_causal_tokenizer_edits_within_one_window() -> None:
    torch.manual_seed(0)
    fields = {"codebook_size": 24, "embedding_dim": 4, "width": 4, "norm": "batch"}
    tokenizer = VQGAN(VQGANConfig(**fields, downsample=(2, 4, 4), causal=True)).eval()
    layers, grid = ("encode", "process", "decode"), (4, 4, 4)
    sizes = {"width": 16, "num_latents": 4, "codebook_size": 24}
    model = MeBT(MeBTConfig(layers=layers, grid=grid, **sizes)).eval()
    shape = WindowShape(grid, (2, 4, 4), causal=True, fps=None)
    window = Window(7, 1, 16, None, causal=True)
    editor = Editor(Path("model"), CachedPredictor(model), tokenizer, shape, window, {}, "32-true")
    frames = np.stack(list(moving_shapes(12, 16, seed=2)))
    clip = Clip("clip", frames, None, (0, 0, 16, 16), (16, 16), ())
    box = np.zeros((16, 16), np.bool_)
    box[5, 6] = True
    for edit in (
        continued(clip, 4, shape),
        continued(clip, 2, shape, backward=True),
        between(clip, clip, 3, shape),
        inside(clip, shape, frames=slice(0, 7), pixels=box),
        inside(clip, shape, frames=slice(4, 7), pixels=None),
    ):
        (video,) = editor.edit(edit, SampleConfig(draft_steps=2))
        assert video.shape == edit.frames.shape
        assert (video[~edit.hidden] == edit.frames[~edit.hidden]).all()
        assert (video[edit.hidden] != edit.frames[edit.hidden]).any()
    with pytest.raises(ConfigError, match="8 new frames do not fit into the window of 7"):
        continued(clip, 8, shape)


def test_the_table_of_seams(flow: Flow, clip: Path) -> None:
    editor = Editor.open(flow.root / "run", flow.root / "tokenizer.safetensors")
    read = editor.read(write(flow.root / "eight.mkv", 8))
    planned = {name: (edit, real) for name, edit, real in seams.edits(read, editor.shape)}
    for edit, real in planned.values():
        assert edit.frames.shape == real.shape
        assert (edit.frames[~edit.hidden] == real[~edit.hidden]).all()
    made = seams.table(editor, [read], SampleConfig(draft_steps=2), 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()]
    assert [row[:2] for row in rows[2:]] == [
        ["`continue`", "frames"],
        ["`continue --backward`", "frames"],
        ["`fill`", "frames"],
        ["`inpaint --box`", "frames"],
        ["`inpaint --box`", "pixels"],
    ]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[2:] if cell != "none")


def test_the_seam_is_told_as_the_mean_of_all_draws() -> None:
    keys = [f"{where}_{what}" for where in ("time", "space") for what in ("across", "kept", "new")]
    one = dict.fromkeys(keys) | {"time_across": 20.0, "time_kept": 30.0}
    two = dict.fromkeys(keys) | {"time_across": 21.0, "time_kept": 32.0, "time_new": 40.0}
    assert seam_lines([one, two]) == [
        "seam, frame to frame: PSNR 20.5 dB across, 31.0 dB inside what was kept, 40.0 dB inside "
        "what is new"
    ]
