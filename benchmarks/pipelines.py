"""What surrounds the models: batches of cached tokens, frames to tokens, tokens to videos."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator

from benchmarks.batches import make_store
from benchmarks.models import half_masked_step, orders, training_loss, training_operations
from benchmarks.work import Setting, Work
from mebt.objective import Micro
from mebt.optim import make_optimizer
from pipeline.device import send
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_bytes
from pipeline.store.batches import Batches
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.writer import create_store
from pipeline.video.decoded import DecodeConfig
from pipeline.video.synthetic import moving_shapes
from pipeline.windows.encode import encode_shards, encoder_of
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows
from pipeline.windows.source import WindowSource
from stages.decode import decode
from tokenizer import VQGAN, identity, save_tokenizer

BATCH = 2
"""Windows of a training step."""
NUM_VIDEOS, VIDEO_FRAMES = 2, 64
AT_ONCE = 4
"""Windows that `mebt tokenize` encodes at once, and puts in a shard."""
DECODED_WINDOWS = 3
DEALT_WINDOWS = 16_384


def dealing(setting: Setting) -> Work:
    """One epoch of cached tokens that fit the memory."""
    count = 128 if setting.small else DEALT_WINDOWS
    config = setting.model_config(16)
    store = make_store(setting.folder / "tokens", count, config.grid, config.codebook_size)
    stream = Batches(store, "train", batch_size=64, seed=0)

    def run() -> None:
        for step in range(count // 64):
            stream.tokens(step)

    stored, given = np.dtype(np.uint16).itemsize, np.dtype(np.int64).itemsize
    return Work(run=run, bytes=count * config.num_tokens * (stored + given), first=run)


def make_windows(setting: Setting) -> WindowSource:
    """Writes frames as PNG files; returns their windows, of which none is kept in memory."""
    folder = setting.folder / "frames"
    for video in range(NUM_VIDEOS):
        (folder / f"{video}").mkdir(parents=True)
        for number, frame in enumerate(moving_shapes(VIDEO_FRAMES, setting.side, seed=video)):
            Image.fromarray(frame).save(folder / f"{video}" / f"{video}_{number:03d}.png")
    config = TokenizeConfig(frames=16, hop=16, size=setting.side)
    videos = scan_frames(folder).videos
    reader = WindowReader(videos, config, cache_bytes=0)
    return WindowSource(plan_windows(videos, config), "train", reader)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Whole training steps at 16 frames that differ only in where their tokens come from."""

    cached: Callable[[], None]
    on_the_fly: Callable[[], None]
    """Reads frames and encodes them."""
    waiting: Callable[[], object]
    """What the cached step does before the model can begin."""
    encoding: Callable[[], object]
    """What the other one does before the model can begin."""
    operations: int
    """Of the model, without optimizer and tokenizer."""


def training_steps(setting: Setting) -> Steps:
    """Prepares them."""
    model, vqgan = setting.model(16).train(), setting.tokenizer()
    config = model.config
    optimizer = make_optimizer(model, learning_rate=1e-5, weight_decay=0.01)
    step = half_masked_step(config)
    windows = make_windows(setting)
    store = make_store(setting.folder / "tokens", 256, config.grid, config.codebook_size)
    stream = Batches(store, "train", batch_size=BATCH, seed=0)

    def read() -> Micro:
        tokens, order = stream.tokens(step), orders(config, BATCH)
        return Micro(send(tokens, setting.device), send(order, setting.device))

    def read_and_encode() -> Micro:
        rows = windows.draw(BATCH, generator=Generator().manual_seed(step))
        tokens = vqgan.encode(send(windows.read(rows), setting.device))
        return Micro(tokens.flatten(1), send(orders(config, BATCH), setting.device))

    def learn(micro: Micro) -> None:
        training_loss(model, micro, step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Steps(
        cached=lambda: learn(read()),
        on_the_fly=lambda: learn(read_and_encode()),
        waiting=read,
        encoding=read_and_encode,
        operations=training_operations(config, BATCH),
    )


def cached_step(setting: Setting) -> Work:
    """A whole step on cached tokens."""
    steps = training_steps(setting)
    return Work(run=steps.cached, operations=steps.operations)


def step_on_the_fly(setting: Setting) -> Work:
    """The same step when frames are read and encoded in it."""
    steps = training_steps(setting)
    return Work(run=steps.on_the_fly, operations=steps.operations)


def waiting(setting: Setting) -> Work:
    """What a step on cached tokens waits for, beside the whole step."""
    steps = training_steps(setting)
    return Work(run=steps.waiting, beside=steps.cached)


def waiting_on_the_fly(setting: Setting) -> Work:
    """What a step waits for that reads and encodes its frames, beside a whole step on cached ones.

    It says what cached tokens save better than two whole steps do: those vary by more.
    """
    steps = training_steps(setting)
    return Work(run=steps.encoding, beside=steps.cached)


def _info(setting: Setting, model: VQGAN, counts: dict[str, int]) -> StoreInfo:
    return StoreInfo(
        tokenizer=identity(model),
        codebook_size=model.config.codebook_size,
        grid=model.config.grid(16, setting.side, setting.side),
        source="",
        counts=counts,
        shard_windows=AT_ONCE,
        chunk_windows=AT_ONCE,
        frames=16,
        stride=1,
        hop=16,
        size=setting.side,
    )


def tokenizing(setting: Setting) -> Work:
    """Frames read, encoded and written as a token store, beside the model on frames in memory."""
    model, windows = setting.tokenizer(), make_windows(setting)
    videos = list(windows.reader.videos.values())
    plan = plan_windows(videos, windows.reader.config).table
    info = _info(setting, model, {"train": len(windows)})
    pixels = to_bytes(windows.read(list(range(len(windows)))))
    encode = encoder_of(model)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=setting.folder) as out:
            encode_shards(
                create_store(Path(out) / "tokens", info, plan),
                list(info.shards()),
                videos,
                encode,
                batch_size=AT_ONCE,
                workers=0,
                advance=lambda count: None,
            )

    def alone() -> None:
        for first in range(0, len(pixels), AT_ONCE):
            encode(pixels[first : first + AT_ONCE])

    return Work(run=run, beside=alone)


def making_videos(setting: Setting) -> Work:
    """All of `mebt decode`, beside the model on tokens in memory."""
    model = setting.tokenizer()
    info = _info(setting, model, {"sample": DECODED_WINDOWS})
    size = (DECODED_WINDOWS, *info.grid)
    tokens = np.random.default_rng(0).integers(info.codebook_size, size=size)
    store, weights = setting.folder / "tokens", setting.folder / "tokenizer.safetensors"
    save_tokenizer(weights, model)
    plan = numbered_plan(info.counts, "w", info.shard_windows)
    create_store(store, info, plan).write_shard("sample", 0, tokens)
    config = DecodeConfig(batch_size=1)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=setting.folder) as out:
            decode(store, weights, Path(out) / "videos", config, device=str(setting.device))

    @torch.inference_mode()
    def alone() -> None:
        for row in torch.from_numpy(tokens).to(setting.device):
            to_bytes(model.decode(row[None]))

    return Work(run=run, beside=alone)
