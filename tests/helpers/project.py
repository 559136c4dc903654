"""A whole project in small: frames of moving shapes, a tokenizer, tokens, a model, samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mebt import MeBT, MeBTConfig, save_model
from pipeline.frames.listing import source_fingerprint
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_model
from pipeline.video.synthetic import moving_shapes
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows
from tests.helpers.memory_store import MemoryStore
from tokenizer import VQGAN, VQGANConfig, identity, save_tokenizer

K, GRID = 13, (2, 4, 4)
WINDOW = TokenizeConfig(frames=4, stride=1, hop=3, size=16)
VIDEOS = {"train": 5, "test": 6}


@dataclass
class Project:
    """Where everything is; token stores stay in memory."""

    root: Path
    tokens: MemoryStore
    samples: MemoryStore

    def paths(self, *names: str) -> dict[str, Path]:
        files = {
            "frames": self.root / "frames",
            "samples": self.root / "samples",
            "run": self.root / "run",
            "tokenizer": self.root / "tokenizer.safetensors",
        }
        return {name: files[name] for name in names or files}

    def use(self, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        """Lets a stage open the two stores by their paths."""
        stores = {self.root / "tokens": self.tokens, self.root / "samples": self.samples}
        monkeypatch.setattr(f"stages.{stage}.TokenStore", lambda path: stores[path])


def make_project(root: Path) -> Project:
    for split, count in VIDEOS.items():
        for video in range(count):
            folder = root / "frames" / split / f"{split}{video}"
            folder.mkdir(parents=True)
            for number, frame in enumerate(moving_shapes(11, 16, seed=ord(split[1]) + video)):
                Image.fromarray(frame).save(folder / f"{split}{video}_{number}.png")
    for split in VIDEOS:
        (root / "tokens" / split).mkdir(parents=True)
    (root / "samples").mkdir()
    torch.manual_seed(0)
    model = VQGAN(
        VQGANConfig(codebook_size=K, embedding_dim=5, width=4, downsample=(2, 4, 4), norm="batch")
    ).eval()
    save_tokenizer(root / "tokenizer.safetensors", model, extra={"steps": "1234"})
    (root / "run").mkdir()
    config = MeBTConfig(
        layers=("encode", "process", "decode"),
        width=12,
        num_heads=2,
        num_latents=7,
        codebook_size=K,
        grid=GRID,
    )
    save_model(root / "run" / "model.safetensors", MeBT(config), extra={"step": "77"})
    store = _tokenize(root / "frames", model)
    drawn = np.random.default_rng(0).integers(0, K, (9, *GRID), dtype=np.uint8)
    samples = MemoryStore(
        {"samples": drawn},
        {},
        codebook_size=K,
        grid=GRID,
        tokenizer=store.tokenizer,
        extra={"sample": {"draft_steps": 16}},
        root=str(root / "samples"),
        fingerprint="cd" * 32,
    )
    return Project(root, store, samples)


def _tokenize(frames: Path, model: VQGAN) -> MemoryStore:
    videos = scan_frames(frames).videos
    table = plan_windows(videos, WINDOW).table
    reader = WindowReader(videos, WINDOW)
    plans = {split: table.filter(np.asarray(table["split"]) == split) for split in VIDEOS}
    tokens = {}
    for split, plan in plans.items():
        windows = np.stack(
            [reader.pixels(split, row["video"], row["first_frame"]) for row in plan.to_pylist()]
        )
        tokens[split] = model.encode(to_model(windows)).numpy().astype(np.uint8)
    return MemoryStore(
        tokens,
        plans,
        codebook_size=K,
        grid=GRID,
        tokenizer=identity(model),
        source=source_fingerprint(videos, frames),
        frames=WINDOW.frames,
        stride=WINDOW.stride,
        size=WINDOW.size,
        root=str(frames.parent / "tokens"),
    )
