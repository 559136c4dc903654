"""Frames decoded ahead, piece by piece, give the windows that a plan names, in its order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.frames.scan import scan_frames
from pipeline.frames.workers import decoders
from pipeline.store.layout import StoreInfo
from pipeline.video.synthetic import moving_shapes
from pipeline.windows import encode
from pipeline.windows.encode import BackoffEncoder, cut_pieces, decode_ahead
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows

ROOT = Path(__file__).parents[3]
LENGTHS = {"a": 23, "b": 7, "c": 40}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        (root / name).mkdir()
        for number, frame in enumerate(moving_shapes(length, 16, seed=seed)):
            Image.fromarray(frame).save(root / name / f"{name}_{number}.png")
    return root


def info_of(config: TokenizeConfig) -> StoreInfo:
    return StoreInfo(
        tokenizer="t",
        codebook_size=9,
        grid=(1, 1, 1),
        source="s",
        counts={"train": 1},
        frames=config.frames,
        stride=config.stride,
        hop=config.hop,
        size=config.size,
    )


@pytest.mark.parametrize("piece_frames", [1, 9, 1000])
@pytest.mark.parametrize(("stride", "hop"), [(1, 1), (2, 1), (3, 2), (1, 7)])
def test_windows_are_those_of_the_plan(
    frames: Path, stride: int, hop: int, piece_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "PIECE_BYTES", piece_frames * 3 * 16**2)
    config = TokenizeConfig(frames=3, stride=stride, hop=hop, size=16)
    videos = scan_frames(frames).videos
    plan = plan_windows(videos, config).table
    pieces = list(cut_pieces(plan, videos, info_of(config)))
    for piece in pieces:
        assert len(piece.frames) <= max(piece_frames, config.frames)
        assert len(set(piece.frames)) == len(piece.frames)
    with decoders(0) as pool:
        found = list(decode_ahead(pool, pieces, size=16, ahead=2, damaged=[]))
    reader = WindowReader(videos, config)
    expected = [reader.pixels("train", r["video"], r["first_frame"]) for r in plan.to_pylist()]
    np.testing.assert_array_equal(found, expected)


def test_worker_processes_decode_the_same_and_stop_with_a_clear_line(frames: Path) -> None:
    videos = scan_frames(frames).videos
    config = TokenizeConfig(frames=3, size=16)
    plan = plan_windows(videos, config).table
    pieces = list(cut_pieces(plan, videos, info_of(config)))
    with decoders(0) as pool:
        expected = list(decode_ahead(pool, pieces, size=16, ahead=0, damaged=[]))
    with decoders(2) as pool:
        found = list(decode_ahead(pool, pieces, size=16, ahead=3, damaged=[]))
        np.testing.assert_array_equal(found, expected)
        pieces[1].frames[0], pieces[1].frames[2] = "missing.png", "gone.png"
        damaged: list[str] = []
        found = list(decode_ahead(pool, pieces, size=16, ahead=3, damaged=damaged))
        assert damaged == ["missing.png is missing.", "gone.png is missing."]
        first, count = len(pieces[0].windows), len(pieces[1].windows)
        assert [n for n, window in enumerate(found) if window is None] == [
            *range(first, first + count)
        ]
        np.testing.assert_array_equal(found[first + count :], expected[first + count :])
    with pytest.raises(PipelineError, match="give fewer than --workers 1"), decoders(1) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGKILL)
        for _ in range(100):
            pool.submit(time.sleep, 0.1).result()


WORKER = """
import os, sys
from pipeline.frames.workers import decoders
from pipeline.frames.images import read_frames

def modules():
    return os.getpid(), [name for name in ("torch", "zarr") if name in sys.modules]

if __name__ == "__main__":
    with decoders(1) as pool:
        print(*pool.submit(modules).result(), flush=True)
        sys.stdin.read()
"""


def test_a_worker_is_light_and_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        worker, _, loaded = parent.stdout.readline().partition(" ")
        assert loaded == "[]\n"
        status = Path("/proc", worker, "status")
        assert status.exists()
        parent.kill()
    deadline = time.monotonic() + 60
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "the worker waits for ever"
        time.sleep(0.01)


def test_at_most_so_many_pieces_are_decoded_ahead(frames: Path) -> None:
    videos = scan_frames(frames).videos
    config = TokenizeConfig(frames=7, hop=7, size=16)
    begun = []

    def pieces():
        for piece in cut_pieces(plan_windows(videos, config).table, videos, info_of(config)):
            begun.append(piece)
            yield piece

    with decoders(0) as pool:
        windows = decode_ahead(pool, pieces(), size=16, ahead=1, damaged=[])
        next(windows)
        assert len(begun) == 3
        assert len(list(windows)) == 3 + 1 + 5 - 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_batch_that_does_not_fit_is_halved(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        tried.append(len(pixels))
        if len(pixels) > 3:
            raise error
        return pixels[:, 0, 0, 0, :1].astype(np.int64)

    pixels = np.arange(13, dtype=np.uint8).reshape(13, 1, 1, 1, 1)
    fitting = BackoffEncoder(encode, 13)
    assert fitting(pixels).ravel().tolist() == list(range(13))
    assert tried == [13, 6, 3, 3, 3, 3, 1]
    assert "out of memory with 13 windows; going on with 6" in capsys.readouterr().err
    assert fitting(pixels[:5]).ravel().tolist() == list(range(5))
    assert tried[7:] == [3, 2]


def test_what_is_no_lack_of_memory_is_no_reason_to_go_on() -> None:
    def wrong(pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("shapes do not match")

    def never(pixels: np.ndarray) -> np.ndarray:
        raise MemoryError

    pixels = np.zeros((4, 16, 8, 8, 3), np.uint8)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        BackoffEncoder(wrong, 4)(pixels)
    with pytest.raises(PipelineError, match="one window of 16x8x8 "):
        BackoffEncoder(never, 4)(pixels)
