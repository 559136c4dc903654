"""Cross-entropy of masked tokens, as published, and how well held-out tokens are predicted."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mebt.masking import split_positions


def masked_token_loss(
    logits: Float[Tensor, "B Nt K"],
    tokens: Int[Tensor, "B Nt"],
    *,
    num_masked: int,
    num_tokens: int,
    average: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Summed cross-entropy over B * N * (share masked)**average.

    `average` 1 is the mean over masked tokens, 0 weighs a batch by how much is masked. As
    published the divisor counts all masked tokens, also those that a target budget left out.
    """
    total = F.cross_entropy(
        logits.float().flatten(0, 1),
        tokens.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    divisor = len(tokens) * num_tokens * (num_masked / num_tokens) ** average
    return total / float(divisor)


@torch.no_grad()
def accuracy(logits: Float[Tensor, "B Nt K"], tokens: Int[Tensor, "B Nt"]) -> Float[Tensor, ""]:
    """Share of targets whose likeliest token is right."""
    return (logits.argmax(-1) == tokens).float().mean()


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    tokens: Int[Tensor, "B N"],
    *,
    mask_ratio: float,
    generator: Generator,
) -> tuple[float, float]:
    """Returns the mean cross-entropy and accuracy of masked tokens at a fixed mask ratio.

    Each row draws its own mask from the generator, which must be on the CPU.
    """
    count = max(1, round(mask_ratio * tokens.shape[1]))
    order = torch.rand(tokens.shape, generator=generator).argsort(1).to(tokens.device)
    split = split_positions(order, num_masked=count)
    logits = model(tokens.gather(1, split.context), split.context, split.targets)
    wanted = tokens.gather(1, split.targets)
    loss = masked_token_loss(
        logits, wanted, num_masked=split.num_masked, num_tokens=split.num_tokens
    )
    return float(loss), float(accuracy(logits, wanted))
