"""Finite scalar quantisation: a codebook of all combinations of some levels, never learned."""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.codebook import Quantized, perplexity_of


class Levels(nn.Module):
    """Tokens as numbers whose digits are the levels of entries, the first entry's the lowest."""

    levels: Tensor
    place_values: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        place_values = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def tokens_of(self, digits: Tensor) -> Int[Tensor, "*places"]:
        """Joins digits [*places D]."""
        return (digits.long() * self.place_values).sum(-1)

    def digits_of(self, tokens: Int[Tensor, "*places"]) -> Int[Tensor, "*places D"]:
        """Returns the level of each entry, counted from 0."""
        return tokens[..., None] // self.place_values % self.levels


class FSQ(Levels):
    """Rounds each entry of a feature to one of a few levels (Mentzer et al., arXiv 2309.15505).

    Entry i has `levels[i]` of them, evenly spaced in -1 … 1. They are symmetric around 0 also where
    their number is even, as in Parker et al. (arXiv 2411.19842): the paper shifts an
    even number by half a level, with a tangent where the inverse of tanh is meant.

    Used in the place of a `Codebook`; there are no weights, and nothing that training has to move.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(levels)
        self.codebook_size = math.prod(levels)

    def _digits(self, bounded: Float[Tensor, "*places D"]) -> Float[Tensor, "*places D"]:
        """Returns the nearest level of each entry in -1 … 1, counted from 0."""
        return ((bounded + 1) / 2 * (self.levels - 1)).round()

    def _entries(self, digits: Tensor) -> Float[Tensor, "*places D"]:
        return 2 * digits / (self.levels - 1) - 1

    @torch.no_grad()
    def nearest(self, rows: Float[Tensor, "R D"]) -> Int[Tensor, " R"]:
        """Returns the token of the nearest levels."""
        return self.tokens_of(self._digits(torch.tanh(rows)))

    def embed(self, tokens: Int[Tensor, "B t h w"]) -> Float[Tensor, "B D t h w"]:
        """Returns the vectors of tokens, with entries in -1 … 1."""
        return rearrange(self._entries(self.digits_of(tokens)), "b t h w d -> b d t h w")

    def forward(
        self,
        features: Float[Tensor, "B D t h w"],
        *,
        restart_threshold: float = 0.0,
        generator: Generator | None = None,
    ) -> Quantized:
        """Quantises the encoder's output as `Codebook.forward` does, with a commitment loss of 0.

        Gradients pass straight through the rounding, to the tanh. No vector can die, so
        `restart_threshold` and `generator` change nothing.
        """
        bounded = torch.tanh(rearrange(features, "b d t h w -> b t h w d"))
        digits = self._digits(bounded.detach())
        # Forward the rounded entries; backward as if nothing had been rounded.
        straight_through = (self._entries(digits) - bounded).detach() + bounded
        tokens = self.tokens_of(digits)
        return Quantized(
            rearrange(straight_through, "b t h w d -> b d t h w"),
            tokens,
            features.new_zeros(()),
            perplexity_of(tokens, self.codebook_size),
        )


class PaperFSQ(Levels):
    """FSQ of published tokenizers, as in the paper's appendix; for encoding and decoding only.

    Entries are whole steps around 0, of which an even number of levels has one more below than
    above. The shift by half a step is put through the inverse of tanh, as the paper means.
    """

    @torch.no_grad()
    def encode(self, features: Float[Tensor, "B D t h w"]) -> Int[Tensor, "B t h w"]:
        """Returns the token of each position's nearest levels."""
        rows = rearrange(features, "b d t h w -> b t h w d").float()
        reach = (self.levels - 1) * (1 + 1e-3) / 2
        shift = (self.levels % 2 == 0) / 2
        steps = torch.tanh(rows + torch.atanh(shift / reach)) * reach - shift
        return self.tokens_of(steps.round() + self.levels // 2)

    def embed(self, tokens: Int[Tensor, "B t h w"]) -> Float[Tensor, "B D t h w"]:
        """Returns the vectors of tokens, with entries from -1 to just below 1, or 1."""
        half = self.levels // 2
        return rearrange((self.digits_of(tokens) - half) / half, "b t h w d -> b d t h w")
