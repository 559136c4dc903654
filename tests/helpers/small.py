"""The whole flow on tiny videos of moving shapes, through the commands that people type."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from pipeline.pixels import to_model
from pipeline.video.synthetic import moving_shapes
from stages.__main__ import cli
from tokenizer import VQGAN, VQGANConfig, save_tokenizer

ROOT = Path(__file__).parents[2]
PRELOADED = [f"stages.{name}" for name in ("decode", "fit_tokenizer", "sample", "tokens", "train")]
PRELOADED += ["stages.tokenize", "torch.utils.tensorboard"]

Run = Callable[[list[str], dict[str, str]], None]
"""Runs a command in another process, given its words and environment variables."""

ASKING = threading.Lock()
"""Held while multiprocessing asks for exit codes: each can be read once, and `start` reads those of
other threads' processes too, to which it then looks like exit code 255."""

PARAMS = {
    "extract": {"size": 16, "test_share": 0.25, "seed": 3},
    "tokenizer": {
        "codebook_size": 24,
        "embedding_dim": 4,
        "width": 4,
        "downsample": [2, 4, 4],
        "norm": "batch",
    },
    "fit_tokenizer": {
        "max_steps": 4,
        "batch_size": 2,
        "checkpoint_every": 2,
        "validate_every": 4,
        "log_every": 1,
        "noise": 4.0,
        "validation_windows": 4,
    },
    "tokenize": {
        "frames": 4,
        "hop": 2,
        "size": 16,
        "batch_size": 3,
        "shard_windows": 16,
        "chunk_windows": 8,
    },
    "model": {
        "layers": ["encode", "process", "decode", "refresh", "decode"],
        "width": 16,
        "num_heads": 2,
        "num_latents": 4,
        "residual_dropout": 0.1,
    },
    "train": {
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        **{"warmup_steps": 0, "cosine": False, "schedule": "linear"},
        **{"clip_norm": None, "ema_decay": 0.9},
        "checkpoint_every": 2,
        "validate_every": 3,
        "log_every": 1,
        "validation_windows": 8,
        "precision": "32-true",
    },
    "sample": {
        "num_samples": 34,
        "batch_size": 8,
        "draft_steps": 4,
        "revise_rounds": 1,
        "precision": "32-true",
    },
    "decode": {"fps": 8.0, "sheet_videos": 4},
    "evaluate": {"num_videos": 4, "mask_ratios": [0.5, 1.0], "batch_size": 4},
}


def write_params(path: Path) -> Path:
    YAML().dump(PARAMS, path)
    return path


def make_tokenizer(path: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    fields = {**PARAMS["tokenizer"], "downsample": (2, 4, 4)}
    model = VQGAN(VQGANConfig(**fields))  # type: ignore[arg-type]
    frames = [np.stack(list(moving_shapes(4, 16, seed=video))) for video in range(8)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(40):  # Until codebook and batch norm have seen what pictures look like.
            model(to_model(np.stack(frames)), restart_threshold=0.5, generator=generator)
    save_tokenizer(path, model.eval())
    return path


def run_command(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    cli(arguments)


class Flow:
    """A folder with params, a tokenizer, and whatever the commands make there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_params(root / "params.yaml")
        make_tokenizer(root / "tokenizer.safetensors")

    def copy(self, root: Path) -> "Flow":
        """Copies everything into a folder that is not there yet."""
        shutil.copytree(self.root, root)
        copied = Flow.__new__(Flow)
        copied.root = root
        return copied

    def arguments(self, stage: str, *more: str, out: str | None = None) -> list[str]:
        root = self.root
        inputs = {
            "extract": ("--synthetic", "6", "--out", "frames"),
            "fit-tokenizer": ("--frames", "frames", "--out", "tokenizer-run"),
            "tokenize": (
                *("--frames", "frames", "--tokenizer", "tokenizer.safetensors", "--out", "tokens"),
            ),
            "train": ("--tokens", "tokens", "--out", "run"),
            "sample": ("--run", "run", "--out", "samples"),
            "decode": (
                *("--tokens", "samples", "--tokenizer", "tokenizer.safetensors", "--out", "videos"),
            ),
            "evaluate": (
                *("--tokens", "longer", "--tokenizer", "tokenizer.safetensors"),
                *("--frames", "frames", "--i3d", "i3d.pt", "--out", "metrics.json"),
            ),
        }
        words = list(inputs[stage])
        if out is not None:
            words[-1] = out
        pairs = zip(words[::2], words[1::2], strict=True)
        paths = [
            word
            for flag, value in pairs
            for word in (flag, value if "synth" in flag or "://" in value else str(root / value))
        ]
        return [stage, *paths, "--params", str(root / "params.yaml"), *more]

    def run(self, stage: str, *more: str, out: str | None = None) -> Result:
        return CliRunner().invoke(cli, self.arguments(stage, *more, out=out))

    def ok(self, stage: str, *more: str, out: str | None = None) -> str:
        result = self.run(stage, *more, out=out)
        assert result.exit_code == 0, result.output
        return result.output

    def refused(self, stage: str, *more: str, out: str | None = None) -> str:
        """Runs a stage that must end with one clear line and exit code 1."""
        result = self.run(stage, *more, out=out)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        return line

    def start(
        self, stage: str, *more: str, out: str | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Starts a stage in a process of its own; what it says of errors is in `errors.txt`."""
        with (self.root / "errors.txt").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "stages", *self.arguments(stage, *more, out=out)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def fork(
        self,
        stage: str,
        *more: str,
        out: str | None = None,
        run: Run | None = None,
        **environment: str,
    ) -> BaseProcess:
        """Starts a stage like `start`, but forked from a server that has imported torch already."""
        return fork(self.arguments(stage, *more, out=out), run=run or run_command, **environment)


def fork(arguments: list[str], *, run: Run, **environment: str) -> BaseProcess:
    """Starts `run(arguments, environment)` in a process that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run, args=(arguments, environment))
    with ASKING:
        process.start()
    return process


def has_ended(process: BaseProcess, seconds: float | None = None) -> bool:
    """Waits so many seconds for what `fork` started; says whether it has ended.

    Unlike `join` and `is_alive` it may be called while other threads fork.
    """
    connection.wait([process.sentinel], seconds)
    with ASKING:
        process.join(0)
        return not process.is_alive()


def content(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file below a folder, less its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
