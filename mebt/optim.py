"""Parameter groups, the published optimizer, and Muon for the matrices of layers."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mebt.model import MeBT

OptimizerKind = Literal["muon", "adamw"]
BETAS, EPS = (0.9, 0.95), 1e-8
MUON_RATE = 3.0
"""Learning rate of Muon in that of AdamW, where both make steps of one size."""


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
    model: MeBT,
    *,
    learning_rate: float,
    weight_decay: float,
    kind: OptimizerKind = "adamw",
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Makes AdamW with the published betas (0.9, 0.95), or `MuonAdamW`.

    `fused` reads and writes every number once; Fabric cannot clip the gradients of such an
    optimizer in precision 16-mixed.
    """
    groups = parameter_groups(model, weight_decay)
    if kind == "muon":
        return MuonAdamW(model, groups, learning_rate=learning_rate, fused=fused)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPS, fused=fused)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices of layers, AdamW for all other parameters.

    Muon steps by the orthogonal matrix nearest to the momentum (Jordan et al. 2024), scaled to the
    size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """

    def __init__(
        self, model: MeBT, groups: list[dict[str, Any]], *, learning_rate: float, fused: bool
    ) -> None:
        decaying, *others = groups
        head: Tensor = model.head.weight  # Not in a layer: its rows are codes, as of an embedding.
        matrices = [parameter for parameter in decaying["params"] if parameter is not head]
        others = [{**decaying, "params": [head]}, *others]
        self.muon = torch.optim.Muon(
            matrices,
            lr=learning_rate,
            weight_decay=decaying["weight_decay"],
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=BETAS, eps=EPS, fused=fused)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Does one step of both, with the learning rates that the groups have now."""
        of_muon, *others = self.param_groups
        of_muon = {**of_muon, "lr": MUON_RATE * of_muon["lr"]}
        for part, groups in ((self.muon, [of_muon]), (self.adamw, others)):
            part.param_groups, part.state = groups, self.state
            part.step()  # type: ignore[no-untyped-call]
