"""Vector quantisation with a codebook that follows the data by moving averages."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

DECAY = 0.99
COMMITMENT_WEIGHT = 0.25
LAPLACE = 1e-7
CHUNK_ENTRIES = 1 << 22
"""Distances held at once: 16 MB of float32, which a processor's cache can hold."""


class Quantized(NamedTuple):
    """What quantising gives: see `Codebook.forward`."""

    embeddings: Tensor
    tokens: Tensor
    commitment_loss: Tensor
    perplexity: Tensor


def perplexity_of(tokens: Int[Tensor, "*places"], codebook_size: int) -> Float[Tensor, ""]:
    """Returns how many tokens, used equally often, would be as hard to guess as these."""
    counts = torch.bincount(tokens.flatten(), minlength=codebook_size)
    shares = counts.float() / tokens.numel()
    return torch.exp(-(shares * torch.log(shares + 1e-10)).sum())


def pick_rows(
    rows: Float[Tensor, "R D"],
    count: int,
    *,
    weights: Float[Tensor, " R"] | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "K D"]:
    """Draws `count` different rows; if there are fewer, copies with a little noise make up.

    With `weights`, a row's chance of being drawn next is its share of what is left of them
    (exponential races: Efraimidis & Spirakis 2006); without, all have the same.
    """
    if len(rows) < count:
        copies = math.ceil(count / len(rows))
        rows = rows.repeat(copies, 1)
        weights = None if weights is None else weights.repeat(copies)
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        rows = rows + noise * (0.01 / math.sqrt(rows.shape[1]))
    if weights is None:
        chosen = torch.randperm(len(rows), generator=generator)[:count]
    else:
        races = torch.empty(len(rows)).exponential_(generator=generator)
        chosen = (weights.float().cpu() / races).topk(count).indices
    return rows[chosen.to(rows.device)]


def _float32(device: str) -> AbstractContextManager[object]:
    """Turns autocast off, where there is such a thing: not on torch's device `meta`."""
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


class Codebook(nn.Module):
    """K vectors that follow the encoder's outputs by moving averages (VQ-VAE, appendix A.1).

    `counts` and `sums` are the moving averages of how many outputs chose each vector and of their
    sum; they and `initialized` are part of the state, so a resumed run goes on where it was.
    """

    embeddings: Tensor
    counts: Tensor
    sums: Tensor
    initialized: Tensor

    def __init__(self, codebook_size: int, embedding_dim: int) -> None:
        super().__init__()
        embeddings = torch.randn(codebook_size, embedding_dim)
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", embeddings.clone())
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def nearest(self, rows: Float[Tensor, "R D"]) -> Int[Tensor, " R"]:
        """Returns the token of the nearest vector, in float32; of equally near ones the first."""
        # |x - e|² = |x|² - 2 x·e + |e|², in the memory of the products.
        norms = self.embeddings.square().sum(1)  # [K]
        tokens = []
        with _float32(rows.device.type):  # In half precision many vectors would be as near.
            for part in torch.split(rows, max(1, CHUNK_ENTRIES // len(self.embeddings))):
                products = 2 * part @ self.embeddings.t()  # [few K]
                distances = torch.sub(part.square().sum(1, keepdim=True), products, out=products)
                tokens.append(distances.add_(norms).argmin(1))
        return torch.cat(tokens)

    def embed(self, tokens: Int[Tensor, "B t h w"]) -> Float[Tensor, "B D t h w"]:
        """Returns the vectors of tokens."""
        return rearrange(F.embedding(tokens, self.embeddings), "b t h w d -> b d t h w")

    @torch.no_grad()
    def initialize(self, rows: Float[Tensor, "K D"]) -> None:
        """Starts from outputs of the encoder instead of noise."""
        self.embeddings.copy_(rows)
        self.sums.copy_(rows)
        self.counts.fill_(1)
        self.initialized.fill_(True)

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "R D"], tokens: Int[Tensor, " R"]) -> None:
        """Moves each vector towards the mean of the outputs that chose it, on all ranks alike."""
        counts = torch.bincount(tokens, minlength=len(self.counts)).to(rows.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, rows)  # [K D]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        total = self.counts.sum()
        # Laplace smoothing: a vector that nothing chose does not divide by zero.
        smoothed = (self.counts + LAPLACE) / (total + len(self.counts) * LAPLACE) * total
        self.embeddings.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def restart(self, rows: Float[Tensor, "K D"], *, threshold: float) -> int:
        """Replaces the vectors whose moving count is below `threshold` by `rows`; returns how many.

        Their averages start anew too, as if each had been chosen once a step: as published, the
        next update undid the restart of every vector that was not chosen at once.
        """
        dead = self.counts < threshold
        self.embeddings.copy_(torch.where(dead[:, None], rows, self.embeddings))
        self.sums.copy_(torch.where(dead[:, None], rows, self.sums))
        self.counts.masked_fill_(dead, 1)
        return int(dead.sum())

    def forward(
        self,
        features: Float[Tensor, "B D t h w"],
        *,
        restart_threshold: float = 0.0,
        generator: Generator | None = None,
    ) -> Quantized:
        """Quantises the encoder's output; in training mode the codebook then follows it.

        Returns embeddings that pass gradients straight through [B D t h w], tokens [B t h w], the
        commitment loss against the vectors before the update, and the batch's perplexity.
        `generator` draws (on the CPU) the first vectors, and those that replace dead ones: an
        output the likelier, the farther it is from its vector (squared, as k-means++ seeds), so
        that what is rare and badly kept gets codes, not once more what is common.
        """
        rows = rearrange(features.detach(), "b d t h w -> (b t h w) d").float()
        if self.training and not self.initialized:
            self.initialize(self._pick(rows, generator))
        tokens = self.nearest(rows)
        found = F.embedding(tokens, self.embeddings)
        b, _, t, h, w = features.shape
        chosen = rearrange(found, "(b t h w) d -> b d t h w", b=b, t=t, h=h, w=w)
        commitment = COMMITMENT_WEIGHT * F.mse_loss(features, chosen)
        # Forward it is `chosen`; backward the gradient goes to `features` as it is.
        straight_through = (chosen - features).detach() + features
        perplexity = perplexity_of(tokens, len(self.counts))
        if self.training:
            self.update(rows, tokens)
            if restart_threshold > 0:
                errors = (rows - found).square().sum(1)
                picked = self._pick(rows, generator, errors)
                self.restart(picked, threshold=restart_threshold)
        grid = rearrange(tokens, "(b t h w) -> b t h w", b=b, t=t, h=h, w=w)
        return Quantized(straight_through, grid, commitment, perplexity)

    def _pick(
        self,
        rows: Float[Tensor, "R D"],
        generator: Generator | None,
        weights: Float[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "K D"]:
        picked = pick_rows(rows, len(self.embeddings), weights=weights, generator=generator)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(picked, 0)
        return picked
