"""Parameter groups, the published optimizer, and Muon for the matrices of layers."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mebt.model import MeBT

OptimizerKind = Literal["muon", "adamw"]
BETAS, EPS = (0.9, 0.95), 1e-8
MUON_RATE = 3.0
"""Learning rate of Muon in that of AdamW, where both make steps of one size."""
MOMENTUM = 0.95
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5
ELEMENTS = 1 << 24
"""Of so many matrices together Muon computes the step at once."""


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
    size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, section 2.2): the same steps as those
    of `torch.optim.Muon`, which takes one matrix after the other, and a tenth of a small model's
    training for it.
    """

    def __init__(
        self, model: MeBT, groups: list[dict[str, Any]], *, learning_rate: float, fused: bool
    ) -> None:
        decaying, *others = groups
        # Not in a layer: the rows of the head are codes, as of an embedding.
        inside = {id(parameter) for parameter in model.blocks.parameters()}
        matrices = [p for p in decaying["params"] if id(p) in inside]
        outside = [p for p in decaying["params"] if id(p) not in inside]
        others = [{**decaying, "params": outside}, *others]
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=BETAS, eps=EPS, fused=fused)
        of_muon = {"params": matrices, "lr": learning_rate}
        of_muon["weight_decay"] = decaying["weight_decay"]
        super().__init__([of_muon, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Does one step of both, with the learning rates that the groups have now."""
        of_muon, *others = self.param_groups
        same_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in of_muon["params"]:
            if parameter.grad is not None:
                same_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, matrices in same_shape.items():
            at_once = max(1, ELEMENTS // shape.numel())
            for start in range(0, len(matrices), at_once):
                self._muon_step(matrices[start : start + at_once], **of_muon)
        self.adamw.param_groups, self.adamw.state = others, self.state
        self.adamw.step()

    def _muon_step(
        self, matrices: list[Tensor], *, lr: float, weight_decay: float, **_: Any
    ) -> None:
        """Steps a few matrices of one shape."""
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        # Nesterov's: the momentum as it will be after this gradient once more. [M R C]
        ahead = torch.stack(torch._foreach_lerp(grads, momenta, MOMENTUM))
        tall, wide = matrices[0].shape
        size = MUON_RATE * lr * 0.2 * math.sqrt(max(tall, wide))
        torch._foreach_mul_(matrices, 1 - MUON_RATE * lr * weight_decay)
        torch._foreach_add_(matrices, orthogonal(ahead).float().unbind(), alpha=-size)


def orthogonal(matrices: Float[Tensor, "M R C"]) -> Float[Tensor, "M R C"]:
    """Returns matrices whose singular values are all about 1, in bfloat16.

    Newton-Schulz iteration (Jordan et al. 2024): a polynomial that lifts small singular values
    fast, and leaves them between 0.7 and 1.2.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT  # [M R R] with R <= C: the smaller of both products.
        # a x + (b S + c S S) x: odd in x, so that singular vectors stay as they are.
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
