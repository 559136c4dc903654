"""Parameter groups and optimizer, as published."""

from typing import Any

import torch
from torch import nn

from mebt.model import MeBT


def parameter_groups(model: MeBT, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the parameters into the four published groups; only Linear weights decay."""
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    embeddings = ["mask_embedding", "latents", "token_embedding.weight"]
    named = {name: p for name, p in model.named_parameters() if p.numel()}
    rest = set(named) - linear - {*embeddings, "position_embedding"}
    groups = (
        (sorted(linear), weight_decay),
        ([name for name in embeddings if name in named], 0.0),
        (sorted(rest), 0.0),
        (["position_embedding"], 0.0),
    )
    return [
        {"params": [named[name] for name in names], "weight_decay": decay}
        for names, decay in groups
    ]


def make_optimizer(
    model: MeBT, *, learning_rate: float, weight_decay: float, fused: bool = True
) -> torch.optim.AdamW:
    """Makes AdamW with the published betas (0.9, 0.95).

    `fused` reads and writes every number once; Fabric cannot clip the gradients of such an
    optimizer in precision 16-mixed.
    """
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=fused)
