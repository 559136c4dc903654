"""`mebt decode` of long windows: in pieces, written as they are made, the pixels of the whole."""

import itertools
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from pipeline.pixels import to_bytes
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store
from pipeline.video import decoded
from pipeline.video.decoded import EXACT
from pipeline.video.writer import mp4_writer, write_mp4
from tests.helpers.small import Flow, content
from tests.helpers.small import make_tokenizer as make_small_tokenizer
from tokenizer import identity, load_tokenizer

LATENT, LONG = 40, ("--exact", "--set", "decode.piece_frames=40", "--set", "decode.batch_size=2")


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """Three long windows of tokens of the small tokenizer: 80 frames each."""
    flow = Flow.__new__(Flow)
    flow.root = tmp_path
    (tmp_path / "params.yaml").write_text("decode: {fps: 8.0}\n", encoding="utf-8")
    model = load_tokenizer(make_small_tokenizer(tmp_path / "tokenizer.safetensors"))
    info = StoreInfo(
        tokenizer=identity(model),
        codebook_size=24,
        grid=(LATENT, 4, 4),
        source="drawn",
        counts={"sample": 3},
        shard_windows=3,
        chunk_windows=3,
    )
    tokens = np.random.default_rng(0).integers(24, size=(3, LATENT, 4, 4))
    plan = numbered_plan(info.counts, "sample", 3)
    create_store(tmp_path / "samples", info, plan).write_shard("sample", 0, tokens)
    return flow


def exact_of(flow: Flow, name: str = "videos") -> np.ndarray:
    frames: Any = zarr.open_array(flow.root / name / EXACT, mode="r")[:]
    return np.asarray(frames)


def test_long_windows_have_the_pixels_of_the_whole(flow: Flow) -> None:
    said = flow.ok("decode", *LONG)
    assert "sheet.webp shows the first 40 of 80 frames\n" in said
    assert "decode: 240/240 frames" in said
    tokens = torch.from_numpy(TokenStore(flow.root / "samples").read("sample"))
    model = load_tokenizer(flow.root / "tokenizer.safetensors")
    with torch.inference_mode():
        whole = to_bytes(model.decode(tokens))
    exact = exact_of(flow)
    assert exact.shape == (3, 80, 16, 16, 3)
    assert np.abs(exact.astype(int) - whole).max() <= 1
    with av.open(str(flow.root / "videos" / "sample-00002.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 80
    assert np.abs(np.stack(shown).astype(int) - whole[2]).mean() < 20
    with Image.open(flow.root / "videos" / "sheet.webp") as sheet:
        assert sheet.n_frames == 40
    record = json.loads((flow.root / "videos" / "decode.json").read_text())
    assert record["config"]["piece_frames"] == 40
    assert "piece_frames = 40, not 44" in flow.refused(
        "decode", *LONG, "--set", "decode.piece_frames=44"
    )
    flow.ok("decode", "--exact", out="at-once")  # 80 frames are no more than a piece of 256.
    record = json.loads((flow.root / "at-once" / "decode.json").read_text())
    assert "piece_frames" not in record["config"]
    assert np.array_equal(exact_of(flow, "at-once"), whole)


@pytest.mark.parametrize("parts", [0, 1, 3, 5])
def test_stopped_anywhere_the_videos_become_the_same(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    flow.ok("decode", *LONG, out="whole")
    seen, add = [], decoded._Row.add

    def add_or_stop(self: Any, frames: np.ndarray) -> None:
        if len(seen) == parts:
            raise KeyboardInterrupt
        seen.append(add(self, frames))

    with monkeypatch.context() as patch:
        patch.setattr(decoded._Row, "add", add_or_stop)
        assert flow.run("decode", *LONG).exit_code == 1
    videos = flow.root / "videos"
    assert not list(videos.glob(".*partial*"))
    for path in videos.glob("*.mp4"):  # None is there that is not whole.
        assert path.read_bytes() == (flow.root / "whole" / path.name).read_bytes()
    flow.ok("decode", *LONG)
    assert content(videos) == content(flow.root / "whole")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_video_that_lacks_exact_frames_gets_all_of_them(flow: Flow, lost: int) -> None:
    flow.ok("decode", *LONG)
    before = content(flow.root / "videos")
    chunks = flow.root / "videos" / EXACT / "c/1"
    (chunks / f"{lost}/0/0/0").unlink()
    (chunks / f"{1 - lost}/0/0/0").write_bytes(b"half")
    assert "1 written now" in flow.ok("decode", *LONG)
    assert content(flow.root / "videos") == before


def test_pieces_too_short_for_the_tokenizer_are_refused(flow: Flow) -> None:
    line = flow.refused("decode", "--set", "decode.piece_frames=20")
    assert "decode.piece_frames: pieces of 20 frames are too short" in line
    assert not (flow.root / "videos").exists()


def test_videos_are_the_same_however_their_frames_are_parted(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(9, 15, 18, 3), dtype=np.uint8)
    write_mp4(tmp_path / "whole.mp4", frames, fps=8, enlarge=2)
    with mp4_writer(tmp_path / "parts.mp4", fps=8, enlarge=2) as add:
        for first, last in itertools.pairwise([0, 1, 5, 9]):
            add(frames[first:last])
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
