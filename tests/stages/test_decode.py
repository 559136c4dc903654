"""`mebt decode`: a video of each window, resumed, and exact when asked."""

import dataclasses
import itertools
import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from PIL import Image

from pipeline.pixels import to_bytes
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store
from pipeline.video.decoded import EXACT, MAX_SHEET
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tokenizer import VQGAN, load_tokenizer


def test_each_window_becomes_a_video_and_the_first_ones_a_sheet(flow: Flow) -> None:
    flow.ok("decode", "--exact")
    store = TokenStore(flow.root / "samples")
    model = load_tokenizer(flow.root / "tokenizer.safetensors")
    exact = zarr.open_array(flow.root / "videos" / "frames.zarr", mode="r")[:]
    assert exact.shape == (34, 4, 16, 16, 3)
    rows = store.read("sample")
    for row in (0, 17, 33):
        with torch.inference_mode():
            expected = to_bytes(model.decode(torch.from_numpy(rows[row : row + 1])))[0]
        assert np.abs(exact[row].astype(int) - expected).max() <= 1
        with av.open(str(flow.root / "videos" / f"sample-{row:05d}.mp4")) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == 4
        distances = np.abs(exact.astype(int) - np.stack(shown)).mean((1, 2, 3, 4))
        assert distances.argmin() == row  # H.264 is lossy, but not that much.
    with Image.open(flow.root / "videos" / "sheet.webp") as sheet:
        assert sheet.n_frames == 4
        assert sheet.size == (2 * 18, 2 * 18)


def test_half_precision_makes_nearly_the_same_pixels(flow: Flow) -> None:
    flow.ok("decode", "--exact")
    record = json.loads((flow.root / "videos" / "decode.json").read_text())
    assert "precision" not in record["config"]  # So folders of earlier versions go on.
    half = ("--set", "decode.precision=bf16-mixed")
    assert "was made with config.precision = null, not 'bf16-mixed'" in flow.refused(
        "decode", *half
    )
    flow.ok("decode", "--exact", *half, out="half")
    exact, near = (
        zarr.open_array(flow.root / name / "frames.zarr", mode="r")[:].astype(int)
        for name in ("videos", "half")
    )
    assert 0 < np.abs(exact - near).mean() < 1
    assert json.loads((flow.root / "half" / "decode.json").read_text()) != record


def test_what_is_missing_is_made_and_the_rest_left_alone(flow: Flow) -> None:
    flow.ok("decode")
    videos = flow.root / "videos"
    stamps = {path.name: path.stat().st_mtime_ns for path in videos.iterdir()}
    whole = (videos / "sheet.webp").read_bytes()
    assert "nothing to do" in flow.ok("decode")
    (videos / "sample-00002.mp4").unlink()
    (videos / "sheet.webp").unlink()
    assert "1 written now" in flow.ok("decode")
    assert (videos / "sheet.webp").read_bytes() == whole
    changed = {p.name for p in videos.iterdir() if p.stat().st_mtime_ns != stamps.get(p.name)}
    assert changed <= {"sample-00002.mp4", "sheet.webp", "decode.json", ".lock"}


def test_a_resumed_row_is_decoded_beside_the_same_rows(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.ok("decode", "--limit", "19")
    for row in (5, 18):
        (flow.root / "videos" / f"sample-{row:05d}.mp4").unlink()
    decoded = []
    whole = VQGAN.decode
    monkeypatch.setattr(VQGAN, "decode", lambda *args: decoded.append(args[1]) or whole(*args))
    assert "2 written now" in flow.ok("decode", "--limit", "19")
    rows = torch.from_numpy(TokenStore(flow.root / "samples").read("sample", 0, 19))
    # Shards of 16 rows, batches of 4; the last batch is cut off by --limit.
    assert [tokens.tolist() for tokens in decoded] == [rows[4:8].tolist(), rows[16:19].tolist()]
    monkeypatch.undo()
    line = flow.refused("decode", "--limit", "19", "--set", "decode.batch_size=3")
    assert "config.batch_size = 4, not 3" in line


def test_other_tokens_are_refused_unless_overwritten(flow: Flow) -> None:
    flow.ok("decode")
    flow.ok("sample", "--set", "sample.seed=9", "--overwrite")
    assert "was made with tokens = '" in flow.refused("decode")
    flow.ok("decode", "--overwrite")
    (flow.root / "videos" / "decode.json").unlink()
    assert "no folder of decoded videos" in flow.refused("decode", "--overwrite")
    assert (flow.root / "videos" / "sample-00000.mp4").exists()


def test_real_windows_can_be_decoded(flow: Flow) -> None:
    tokens = str(flow.root / "tokens")
    words = flow.arguments("decode", "--split", "test", "--limit", "3", out="real")
    words[words.index("--tokens") + 1] = tokens
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (flow.root / "real").glob("*.mp4"))
    assert names == [f"test-{row:05d}.mp4" for row in range(3)]
    without_split = [w for a, w in itertools.pairwise(["", *words]) if "--split" not in (a, w)]
    assert CliRunner().invoke(cli, without_split).exit_code == 2


def test_a_gif_sheet(flow: Flow) -> None:
    flow.ok("decode", "--set", "decode.sheet=gif", "--set", "decode.columns=4")
    with Image.open(flow.root / "videos" / "sheet.gif") as sheet:
        assert sheet.size == (4 * 18, 18)


def test_a_sheet_that_its_format_cannot_hold_is_refused_at_once(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_SHEET, "webp", 40)
    line = flow.refused("decode", "--set", "decode.columns=3")
    assert "2 rows of 3 videos make a sheet of 54 pixels, but webp holds 40" in line
    flow.ok("decode", "--set", "decode.columns=2")


def test_black_videos_are_whole_after_a_stop(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """What zarr is told of chunks that are all zero, it forgets when the array is opened again."""
    few = ("--exact", "--limit", "6")
    monkeypatch.setattr("pipeline.pixels.to_bytes", lambda x, **_: to_bytes(x) * np.uint8(0))
    flow.ok("decode", *few)
    videos = flow.root / "videos"
    before = content(videos)
    for row in (3, 4, 5):  # As a kill leaves them.
        (videos / f"sample-{row:05d}.mp4").unlink()
        shutil.rmtree(videos / EXACT / "c" / str(row))
    assert "3 written now" in flow.ok("decode", *few)
    assert content(videos) == before
    assert "nothing to do" in flow.ok("decode", *few)


def with_rate(flow: Flow, fps: float | None, name: str = "samples") -> None:
    """Lets a store know the rate of its frames."""
    store = TokenStore(flow.root / name)
    info = dataclasses.replace(store.info, fps=fps)
    create_store(flow.root / name, info, store.plan())


def played(flow: Flow) -> Fraction:
    with av.open(str(flow.root / "videos" / "sample-00001.mp4")) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return rate


BY_ITSELF = ("--limit", "2", "--set", "decode.fps=null")


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(12.5, "25/2"), (30000 / 1001, "30000/1001"), (24000 / 1001 / 2, "12000/1001")],
)
def test_videos_play_at_the_rate_of_their_frames(flow: Flow, fps: float, exact: str) -> None:
    with_rate(flow, fps)
    assert "rate unknown" not in flow.ok("decode", *BY_ITSELF)
    assert played(flow) == Fraction(exact)
    with Image.open(flow.root / "videos" / "sheet.webp") as sheet:
        total = 0
        for number in range(sheet.n_frames):
            sheet.seek(number)
            sheet.load()
            total += sheet.info["duration"]
    assert total == round(4000 / fps)


def test_an_unknown_rate_is_said_and_another_may_be_set(flow: Flow) -> None:
    with_rate(flow, None)
    said = flow.ok("decode", *BY_ITSELF)
    assert "rate unknown: playing at 8 frames a second; set decode.fps\n" in said
    assert played(flow) == 8
    assert "nothing to do" in flow.ok("decode", "--limit", "2", "--set", "decode.fps=8")
    with_rate(flow, 25.0)
    assert "rate unknown" not in flow.ok("decode", "--limit", "2", "--set", "decode.fps=8")
    assert "made with config.fps = 8.0, not 25.0" in flow.refused("decode", *BY_ITSELF)
    flow.ok("decode", *BY_ITSELF, "--overwrite")
    assert played(flow) == 25
    assert json.loads((flow.root / "videos" / "decode.json").read_text())["config"]["fps"] == 25


@pytest.mark.parametrize(
    ("fps", "shown", "said"),
    [
        (120.0, 120, "sheet.webp: one frame of 2, as webp plays no 120 a second"),
        (0.01, Fraction(1, 10), "0.01 frames a second are not played: playing at 0.1"),
    ],
)
def test_what_cannot_be_played_so_is_said(flow: Flow, fps: float, shown: float, said: str) -> None:
    with_rate(flow, fps)
    assert said in flow.ok("decode", *BY_ITSELF)
    assert played(flow) == shown
