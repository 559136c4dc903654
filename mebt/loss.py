"""Cross-entropy of masked tokens, as published, and how well held-out tokens are predicted."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from mebt.conditions import Conditions
from mebt.linear import linear, product
from mebt.masking import split_positions

LOGIT_CHUNK = 1024
"""Targets whose logits are in memory at once."""


class LossOutput(NamedTuple):
    """What a model in training says of target tokens."""

    total: Float[Tensor, ""]
    """Their summed cross-entropy, in float32."""
    num_correct: Int[Tensor, ""]
    """Of how many the likeliest token is the right one."""


def summed_cross_entropy(
    hidden: Float[Tensor, "B Nt D"],
    weight: Float[Tensor, "K D"],
    tokens: Int[Tensor, "B Nt"],
    label_smoothing: float = 0.0,
) -> LossOutput:
    """Compares tokens with the logits `hidden @ weight.T`, in float32.

    Only a few rows of logits exist at a time; since those would be needed again for the gradient,
    it is computed along with the loss.
    """
    total, num_correct = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1), weight, tokens.flatten(), label_smoothing, torch.is_grad_enabled()
    )
    return LossOutput(total, num_correct)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        label_smoothing: float,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=hidden.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grads: list[Tensor] = []
        grad_weight: Tensor | None = None
        for rows, target_tokens in zip(
            torch.split(hidden, LOGIT_CHUNK), torch.split(tokens[:, None], LOGIT_CHUNK), strict=True
        ):
            logits = linear(rows, weight)
            precision = logits.dtype
            loss, hits, grad = _of_logits(logits.float(), target_tokens, label_smoothing)
            total += loss
            num_correct += hits
            if with_gradient:
                grad = grad.to(precision)
                grads.append(product(grad, weight.to(precision)))
                of_weight = product(grad.T, rows.to(precision))
                if grad_weight is None:
                    grad_weight = of_weight.to(weight.dtype)
                else:
                    grad_weight += of_weight
        ctx.mark_non_differentiable(num_correct)
        ctx.gradients = (torch.cat(grads), grad_weight) if with_gradient else None
        return total, num_correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.gradients
        del ctx.gradients  # Scaled where they are: a second backward pass fails.
        return of_hidden.mul_(grad), of_weight.mul_(grad), None, None, None


def _of_logits(
    logits: Float[Tensor, "R K"], tokens: Int[Tensor, "R 1"], label_smoothing: float
) -> tuple[Tensor, Tensor, Float[Tensor, "R K"]]:
    """Returns the summed loss, how many tokens are the likeliest, and the gradient, in place."""
    largest, likeliest = logits.max(1, keepdim=True)  # [R 1]
    logits -= largest
    of_target = logits.gather(1, tokens)
    if label_smoothing:  # A share of the probability is spread over all tokens.
        of_target = torch.lerp(of_target, logits.mean(1, keepdim=True), label_smoothing)
    probs = logits.exp_()
    sums = probs.sum(1, keepdim=True)
    probs /= sums
    # The gradient of cross-entropy is softmax(logits) - target, a one-hot that may be smoothed.
    ones = torch.full_like(sums, label_smoothing - 1)
    grad = probs.scatter_add_(1, tokens, ones)
    if label_smoothing:
        grad -= label_smoothing / grad.shape[1]
    return (sums.log() - of_target).sum(), (likeliest == tokens).sum(), grad


def masked_token_loss(
    summed: Float[Tensor, ""],
    batch_size: int,
    *,
    num_masked: int,
    num_tokens: int,
    average: float = 1.0,
) -> Float[Tensor, ""]:
    """Summed cross-entropy over B * N * (share masked)**average.

    `average` 1 is the mean over masked tokens, 0 weighs a batch by how much is masked. As
    published the divisor counts all masked tokens, also those that a target budget left out.
    """
    divisor = batch_size * num_tokens * (num_masked / num_tokens) ** average
    return summed / float(divisor)


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    tokens: Int[Tensor, "B N"],
    *,
    mask_ratio: float,
    generator: Generator,
    conditions: Conditions | None = None,
) -> tuple[float, float]:
    """Returns the mean cross-entropy and accuracy of masked tokens at a fixed mask ratio.

    Each row draws its own mask from the generator, which must be on the CPU.
    """
    count = max(1, round(mask_ratio * tokens.shape[1]))
    order = torch.rand(tokens.shape, generator=generator).argsort(1).to(tokens.device)
    split = split_positions(order, num_masked=count)
    target_tokens = tokens.gather(1, split.targets)
    context_tokens = tokens.gather(1, split.context)
    output = model(
        context_tokens, split.context, split.targets, target_tokens, conditions=conditions
    )
    count = target_tokens.numel()
    return float(output.total) / count, float(output.num_correct) / count
