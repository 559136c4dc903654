"""Published checkpoint files: imported without running them, they give the published numbers."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mebt import MeBT, load_model
from mebt.optim import make_optimizer
from pipeline.published.mebt_checkpoint import FIRST_STAGE
from pipeline.training.checkpoint import Checkpoint, load_last, restore_optimizer
from stages.import_model import import_model
from stages.import_tokenizer import import_tokenizer
from tests.golden_checks.recipe import load_meta
from tests.golden_checks.vqgan import assert_near
from tokenizer import VQGAN, load_tokenizer

CHECKPOINT = "checkpoint.ckpt"


def check_pictures(model: VQGAN, io: dict[str, Tensor]) -> None:
    tokens = model.encode(io["video"])
    assert torch.equal(tokens, io["tokens"].reshape(tokens.shape))
    if "z" in io:
        with torch.no_grad():
            assert_near(model.features(io["video"]), io["z"])
    assert_near(model.decode(tokens), io["recon"])


def check_vqgan(case: Path, numbers: Path) -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "tokenizer.safetensors"
        imported = import_tokenizer(case / CHECKPOINT, out)
        model = load_tokenizer(out)
    assert imported.source == load_meta(case)["files"][CHECKPOINT]["sha256"]
    stored = load_meta(numbers)["state_dict"]
    assert imported.taken + len(imported.ignored) == len(stored)
    assert imported.ignored.keys() < stored.keys()
    check_pictures(model, load_file(numbers / "io.safetensors"))


def check_lightning_vqgan(case: Path) -> None:
    check_vqgan(case, case)


def check_old_layout(case: Path) -> None:
    """Its weights, and so its numbers, are those of another case beside it."""
    match = re.search(r"golden/(\w+)", load_meta(case)["made_from"])
    assert match
    check_vqgan(case, case.parent / match[1])


def factors(hparams: dict[str, Any], video: Tensor) -> tuple[int, int, int]:
    t, h, w = hparams["mask_config"]["params"]["shape"]
    frames, height, width = video.shape[2:]
    return frames // t, height // h, width // w


def check_optimizer(model: MeBT, checkpoint: Checkpoint | None) -> None:
    """A softmax does not change with the bias of its keys: their gradients are all but zero."""
    assert checkpoint
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.01)
    restore_optimizer(optimizer, checkpoint.tensors)
    assert len(optimizer.state) == len(list(model.parameters()))
    for block in model.blocks:
        squares = {
            name: float(optimizer.state[linear.bias]["exp_avg_sq"].mean())
            for name, linear in block.attention.named_children()
            if isinstance(linear, nn.Linear)
        }
        key = squares.pop("key")
        assert len(squares) == 3
        assert all(key < 1e-6 * other for other in squares.values())


def check_mebt(case: Path) -> None:
    meta, io = load_meta(case), load_file(case / "io.safetensors")
    downsample = factors(meta["hyper_parameters"], io["video"])
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        imported = import_model(case / CHECKPOINT, run, downsample=downsample, optimizer=True)
        model = load_model(run / "model.safetensors")
        check_optimizer(model, load_last(run / "checkpoints"))
        check_pictures(load_tokenizer(run / "tokenizer.safetensors"), io)
    assert len(imported.published.checkpoint.state) == len(meta["state_dict"])
    assert all(name.startswith(FIRST_STAGE) for name in imported.ignored)
    context, targets = io["context_indices"], io["target_indices"]
    with torch.no_grad():
        logits = model(io["tokens"].gather(1, context), context, targets)
    torch.testing.assert_close(logits, io["logits"], atol=2e-5, rtol=1e-4)


CHECKS = {
    "vqgan lightning checkpoint": check_lightning_vqgan,
    "vqgan checkpoint, hand-made old layout": check_old_layout,
    "mebt lightning checkpoint (embeds the VQGAN as first_stage_model.*)": check_mebt,
}
