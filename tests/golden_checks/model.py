"""Logits, losses and gradients of the published transformer."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from mebt import MeBT, MeBTConfig
from mebt.loss import masked_token_loss
from mebt.masking import num_masked, split_positions
from mebt.published import config_from_hparams, convert_name, convert_state
from tests.golden_checks.recipe import load_case


def load_published(case: Path, hparams: dict) -> MeBT:
    config: MeBTConfig = config_from_hparams(hparams, codebook_size=hparams["vocab"])
    model = MeBT(config).eval()
    model.load_state_dict(convert_state(load_file(case / "weights.safetensors"), config))
    return model


def check_forward(case: Path) -> None:
    meta, io = load_case(case)
    hparams = meta["hparams"]
    model = load_published(case, hparams)
    tokens = io["tokens"]
    for name in meta["accuracy"]:
        context, targets = io[f"{name}.context_indices"], io[f"{name}.target_indices"]
        with torch.no_grad():
            logits = model(tokens.gather(1, context), context, targets)
        torch.testing.assert_close(logits, io[f"{name}.logits"], atol=2e-5, rtol=1e-4)
    for name, entry in meta.get("losses", {}).items():
        check_loss(model, meta, io, name, entry)
    if (case / "grads.safetensors").exists():
        check_gradients(model, meta, io, load_file(case / "grads.safetensors"))


def published_loss(model: MeBT, meta: dict, io: dict, entry: dict) -> torch.Tensor:
    grid = model.config.grid
    per_frame = grid[1] * grid[2]
    training = entry["mode"] == "train"
    length = entry["T"] if training else grid[0]
    total = length * per_frame
    split = split_positions(
        io["loss.indices"],
        num_masked=num_masked(meta["hparams"]["train_schedule"], entry["t"], total),
        budget=entry.get("budget"),
        frames=(entry["start_t"], length) if training else None,
        tokens_per_frame=per_frame,
    )
    tokens = io["tokens"]
    summed, _ = model(
        *(tokens.gather(1, split.context), split.context, split.targets),
        tokens.gather(1, split.targets),
        entry["label_smoothing"],
    )
    return masked_token_loss(
        summed,
        len(tokens),
        num_masked=split.num_masked,
        num_tokens=split.num_tokens,
        average=entry["avg_loss"],
    )


def check_loss(model: MeBT, meta: dict, io: dict, name: str, entry: dict) -> None:
    with torch.no_grad():
        loss = published_loss(model, meta, io, entry)
    expected = torch.tensor(entry["loss"])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=2e-5, msg=lambda m: f"{name}: {m}")


def check_gradients(model: MeBT, meta: dict, io: dict, stored: dict) -> None:
    published_loss(model, meta, io, meta["losses"]["eval_t0.3_avg1.0_ls0.0"]).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {convert_name(key) for key in stored} == gradients.keys()
    for key, expected in stored.items():
        found = gradients[convert_name(key)]
        torch.testing.assert_close(found, expected.reshape(found.shape), atol=1e-6, rtol=1e-4)


CHECKS = {"mebt forward": check_forward}
