"""MeBT: masked-token prediction through a fixed number of latent tokens (CVPR 2023, section 3)."""

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mebt.attention import attend
from mebt.config import MeBTConfig
from mebt.lean import linear_of, linear_of_gelu, linear_of_norm
from mebt.loss import summed_cross_entropy
from mebt.positions import places_of, sines, spread_places

INIT_STD = 0.02
"""Deviation of the first weights, as published."""
PositionInit = Literal["local", "sines", "normal"]
SLOW, LOUD, NEAR = 3.0, 2.5, 1.4
"""Of `local`: the power of frequencies; positions in parts of tokens; by how much queries and keys
are larger than others."""
QUIET = 0.3
"""And what is drawn at random of latents, in parts of tokens."""
ROWS = 1024
"""Queries that go through a layer at once where there are no gradients: bounds memory, too."""

Memory = tuple[Tensor, Tensor]
"""Keys and values [B Nm D] that a layer's query reads."""


class Attention(nn.Module):
    """Multi-head attention of queries on a memory; whoever calls it applies the first weights.

    `query`, `key` and `value` read normalised streams, which `Block` need not keep.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(residual_dropout)

    def forward(self, query: Float[Tensor, "B Nq D"], memory: Memory) -> Float[Tensor, "B Nq D"]:
        """Reads the memory. An empty memory gives the output's bias: nothing was read."""
        q, k, v = (
            rearrange(x, "b n (head d) -> b head n d", head=self.num_heads)
            for x in (query, *memory)
        )
        if k.shape[2] == 0:
            # Said outright, since fused kernels differ on an empty axis. Every parameter stays in
            # the graph, with a gradient of zero: DDP waits for all of them.
            read = 0 * q + (k.sum(2, keepdim=True) + v.sum(2, keepdim=True))
        else:
            read = attend(q, k, v, self.dropout if self.training else 0.0)
        read = rearrange(read, "b head n d -> b n (head d)")
        out: Tensor = self.out_dropout(linear_of(self.out, read))
        return out


class Block(nn.Module):
    """`query` reads `memory`, then goes through an MLP; one norm serves both streams.

    In a `published` block the residual starts from the *normalised* query, and weights trained so
    depend on it. In a `stream` block it starts from the query itself, as is usual.
    """

    def __init__(self, config: MeBTConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.adds_to_norm = config.block == "published"
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(
            width, config.num_heads, config.attention_dropout, config.residual_dropout
        )
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(config.residual_dropout),
        )

    def forward(
        self, query: Float[Tensor, "B Nq D"], *memory: Float[Tensor, "B _ D"]
    ) -> Float[Tensor, "B Nq D"]:
        """Returns the new query stream, which has read one stream or several."""
        if not self.activation_checkpointing:
            return self._compute(query, *memory)
        # In here, not around the block: so torch.compile and FSDP, which wrap blocks, see it too.
        out: Tensor = checkpoint(self._compute, query, *memory, use_reentrant=False)
        return out

    def _compute(self, query: Tensor, *memory: Tensor) -> Tensor:
        return self.read(query, self.memory(*memory))

    def memory(self, *streams: Float[Tensor, "B _ D"]) -> Memory:
        """Returns the keys and values of streams: of each row they depend on that row alone."""
        layers = (self.attention.key, self.attention.value)

        def of(rows: Tensor) -> tuple[Tensor, ...]:
            return linear_of_norm(layers, self.norm, rows, self.norm(rows))

        key, value = _of_rows(of, *streams)
        return key, value

    def read(self, query: Float[Tensor, "B Nq D"], memory: Memory) -> Float[Tensor, "B Nq D"]:
        """Returns the new query stream: each row depends on that row and the memory alone."""
        (out,) = _of_rows(lambda rows: (self._read(rows, memory),), query)
        return out

    def _read(self, query: Tensor, memory: Memory) -> Tensor:
        normed = self.norm(query)
        (asked,) = linear_of_norm([self.attention.query], self.norm, query, normed)
        query = (normed if self.adds_to_norm else query) + self.attention(asked, memory)
        widen, _, narrow, dropout = self.mlp
        assert isinstance(widen, nn.Linear) and isinstance(narrow, nn.Linear)
        (hidden,) = linear_of_norm([widen], self.norm_mlp, query, self.norm_mlp(query))
        out: Tensor = query + dropout(linear_of_gelu(narrow, hidden))
        return out


def _of_rows(
    compute: Callable[[Tensor], tuple[Tensor, ...]], *streams: Float[Tensor, "B _ D"]
) -> tuple[Tensor, ...]:
    """Returns what `compute` makes of each row of the streams, one stream behind the other.

    Without gradients a few rows go through at a time: their values stay in a CPU's cache, and only
    the results exist as a whole.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        made = [compute(stream) for stream in streams]
        return (
            made[0] if len(made) == 1 else tuple(torch.cat(x, 1) for x in zip(*made, strict=True))
        )
    parts = [part for stream in streams for part in torch.split(stream, ROWS, dim=1)]
    done = compute(parts[0])
    if len(parts) == 1:
        return done
    edges = list(itertools.accumulate((part.shape[1] for part in parts), initial=0))
    whole = tuple(x.new_empty(len(x), edges[-1], x.shape[2]) for x in done)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        done = compute(parts[number]) if number else done
        for out, rows in zip(whole, done, strict=True):
            out[:, start:stop] = rows
    return whole


class MeBT(nn.Module):
    """Predicts target tokens from context tokens, in one pass and any order.

    `activation_checkpointing` keeps only what enters each layer for the backward pass, and computes
    the rest again there: less memory, more time, the same numbers.
    """

    def __init__(self, config: MeBTConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.codebook_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.num_tokens, width))
        self.mask_embedding = nn.Parameter(torch.empty(width))
        # Latents that no layer reads never get a gradient, and DDP would wait for it.
        read = config.num_latents > 0 and set(config.layers) != {"dense"}
        self.latents = nn.Parameter(torch.empty(config.num_latents, width), requires_grad=read)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, activation_checkpointing) for _ in config.layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.codebook_size, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self, std: float = INIT_STD, *, positions: PositionInit = "normal") -> None:
        """Draws fresh weights, as published by default, from torch's global generator.

        With `positions` sines, neighbours in time and space begin alike. With local, latents have
        places of their own besides, and layers begin by reading what is near: otherwise both ways
        of a token, into a latent and out again, have to be found before either is of use.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.position_embedding, self.mask_embedding, self.latents):
            nn.init.normal_(parameter, std=std)
        grid, width = self.config.grid, self.config.width
        if positions == "sines":
            self.position_embedding.copy_(std * sines(places_of(grid), width))
        if positions == "local":
            self.position_embedding.copy_(LOUD * std * sines(places_of(grid), width, power=SLOW))
            spread = sines(spread_places(grid, len(self.latents)), width, power=SLOW)
            self.latents.mul_(QUIET).add_(LOUD * std * spread)
            for attention in (module for module in self.modules() if isinstance(module, Attention)):
                # What is alike looks alike to a query, then (Trockman & Kolter 2023, section 3).
                nn.init.normal_(attention.query.weight, std=NEAR / width**0.5)
                attention.key.weight.copy_(attention.query.weight)

    def forward(
        self,
        context_tokens: Int[Tensor, "B Nc"],
        context_positions: Int[Tensor, "B Nc"],
        target_positions: Int[Tensor, "B Nt"],
        wanted: Int[Tensor, "B Nt"] | None = None,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, "B Nt K"] | tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Returns logits for the target positions, in their order.

        With the `wanted` tokens there, returns their summed cross-entropy, and of how many the
        likeliest token is right, and never holds all logits: see `summed_cross_entropy`.

        Positions are t*H*W + h*W + w in the grid the model was made for. The order of the context
        does not matter.
        """
        latents = self.embed_latents(len(target_positions))
        context = self.embed_context(context_tokens, context_positions)
        targets = self.embed_targets(target_positions)
        num_context = context.shape[1]
        for layer, block in zip(self.config.layers, self.blocks, strict=True):
            match layer:
                case "encode":
                    latents = block(latents, context)
                case "process":
                    latents = block(latents, latents)
                case "decode":
                    targets = block(targets, latents)
                case "refresh":
                    latents = block(latents, latents, targets)
                case "dense":
                    both = torch.cat([context, targets], dim=1)
                    both = block(both, both)
                    context, targets = both[:, :num_context], both[:, num_context:]
        targets = self.norm(targets)
        if wanted is not None:
            return summed_cross_entropy(targets, self.head.weight, wanted, label_smoothing)
        logits: Tensor = self.head(targets)
        return logits

    def embed_latents(self, batch: int) -> Float[Tensor, "B M D"]:
        """Returns the latent tokens as they are before they have read anything."""
        latents: Tensor = self.dropout(self.latents.expand(batch, -1, -1))
        return latents

    def embed_context(
        self, tokens: Int[Tensor, "B Nc"], positions: Int[Tensor, "B Nc"]
    ) -> Float[Tensor, "B Nc D"]:
        """Returns what the layers see of tokens at these positions."""
        # F.embedding, not [positions]: on several threads the gradient of indexing is summed in an
        # order drawn by chance, and no run could be repeated bit for bit.
        places = F.embedding(positions, self.position_embedding)
        context: Tensor = self.dropout(self.token_embedding(tokens) + places)
        return context

    def embed_targets(self, positions: Int[Tensor, "B Nt"]) -> Float[Tensor, "B Nt D"]:
        """Returns what the layers see of positions to be predicted."""
        places = F.embedding(positions, self.position_embedding)
        targets: Tensor = self.dropout(self.mask_embedding + places)
        return targets
