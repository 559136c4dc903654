"""MeBT: masked-token prediction through a fixed number of latent tokens (CVPR 2023, section 3).

What is unusual about it: latents stand between context and targets, so that cost grows linearly.
Positions that are added to tokens take the place of an attention mask: context and targets are
sets, in any order. A layer has one norm for what asks and what is asked, and as published its
residual starts from the normalised query. Linear layers compute norms and GELU again for gradients.
"""

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
from mebt.conditions import Added, ConditionEmbedding, Conditions
from mebt.config import MeBTConfig
from mebt.linear import gelu_linear, norm_linears, recorded_linear
from mebt.loss import LossOutput, summed_cross_entropy
from mebt.positions import places_of, sines, spread_places

INIT_STD = 0.02
"""Deviation of the first weights, as published."""
PositionInit = Literal["local", "sines", "normal"]
SLOW, LOUD, NEAR = 3.0, 2.5, 1.4
"""Of `local`: the power of frequencies; positions in parts of tokens; by how much queries and keys
are larger than others."""
QUIET = 0.3
"""And what is drawn at random of latents, in parts of tokens."""
QUERY_CHUNK = 1024
"""Queries that go through a layer at once where there are no gradients: bounds memory, too."""

KeysValues = tuple[Tensor, Tensor]
"""What a layer's queries look up: keys and values [B Nm D]."""


class Attention(nn.Module):
    """Multi-head attention between streams that a block has normalised."""

    def __init__(self, width: int, num_heads: int, dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(residual_dropout)

    def queries(self, norm: nn.LayerNorm, x: Tensor, normed: Tensor) -> Float[Tensor, "B Nq D"]:
        """Projects queries; `normed` is `norm(x)`."""
        (queries,) = norm_linears([self.query], norm, x, normed)
        return queries

    def keys_values(self, norm: nn.LayerNorm, *streams: Float[Tensor, "B _ D"]) -> KeysValues:
        """Projects streams, one behind the other: of each row both depend on that row alone."""

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            return norm_linears((self.key, self.value), norm, rows, norm(rows))

        keys, values = _in_chunks(project, *streams)
        return keys, values

    def forward(
        self, queries: Float[Tensor, "B Nq D"], keys_values: KeysValues
    ) -> Float[Tensor, "B Nq D"]:
        """Expects projected queries, keys and values. Without keys, gives the output's bias."""
        q, k, v = (
            rearrange(x, "b n (head d) -> b head n d", head=self.num_heads)
            for x in (queries, *keys_values)
        )
        if k.shape[2] == 0:
            # Said outright, since fused kernels differ on an empty axis. Every parameter stays in
            # the graph, with a gradient of zero: DDP waits for all of them.
            read = 0 * q + (k.sum(2, keepdim=True) + v.sum(2, keepdim=True))  # [B head Nq d]
        else:
            read = attend(q, k, v, self.dropout if self.training else 0.0)
        read = rearrange(read, "b head n d -> b n (head d)")
        out: Tensor = self.out_dropout(recorded_linear(self.out, read))
        return out


class Block(nn.Module):
    """A layer: queries attend to one stream or several, then go through an MLP.

    One norm serves both sides. In a `published` block the residual starts from the *normalised*
    query, and weights trained so depend on it; in a `stream` block from the query itself, as usual.
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
        """Returns the query stream after it has read the streams of `memory`."""
        if not self.activation_checkpointing:
            return self._forward(query, *memory)
        # In here, not around the block: so torch.compile and FSDP, which wrap blocks, see it too.
        out: Tensor = checkpoint(self._forward, query, *memory, use_reentrant=False)
        return out

    def _forward(self, query: Tensor, *memory: Tensor) -> Tensor:
        return self.attend(query, self.keys_values(*memory))

    def keys_values(self, *streams: Float[Tensor, "B _ D"]) -> KeysValues:
        """Returns what queries look up in these streams."""
        return self.attention.keys_values(self.norm, *streams)

    def attend(
        self, query: Float[Tensor, "B Nq D"], keys_values: KeysValues
    ) -> Float[Tensor, "B Nq D"]:
        """Returns the new query stream: each row depends on that row and on what it looks up."""
        (out,) = _in_chunks(lambda rows: (self._attend(rows, keys_values),), query)
        return out

    def _attend(self, query: Tensor, keys_values: KeysValues) -> Tensor:
        normed = self.norm(query)
        queries = self.attention.queries(self.norm, query, normed)
        query = (normed if self.adds_to_norm else query) + self.attention(queries, keys_values)
        widen, _, narrow, dropout = self.mlp
        assert isinstance(widen, nn.Linear) and isinstance(narrow, nn.Linear)
        (hidden,) = norm_linears([widen], self.norm_mlp, query, self.norm_mlp(query))  # [B Nq 4D]
        out: Tensor = query + dropout(gelu_linear(narrow, hidden))
        return out


def _in_chunks(
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
    parts = [part for stream in streams for part in torch.split(stream, QUERY_CHUNK, dim=1)]
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
        self.condition_embedding = ConditionEmbedding(config) if config.conditions else None
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
        if self.condition_embedding is not None:
            self.condition_embedding.rescale()
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
        target_tokens: Int[Tensor, "B Nt"] | None = None,
        label_smoothing: float = 0.0,
        conditions: Conditions | None = None,
    ) -> Float[Tensor, "B Nt K"] | LossOutput:
        """Returns logits for the target positions, in their order.

        With the `target_tokens` there, returns what they cost, and never holds all logits: see
        `summed_cross_entropy`.

        Positions are t*H*W + h*W + w in the grid the model was made for. The order of the context
        does not matter. `conditions` say what else is known of each window.
        """
        added = self.embed_conditions(conditions)
        latents = self.embed_latents(len(target_positions), added)
        context = self.embed_context(context_tokens, context_positions, added)
        targets = self.embed_targets(target_positions, added)
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
                case _:
                    raise AssertionError(f"nothing is said of what {layer} reads")
        targets = self.norm(targets)
        if target_tokens is not None:
            return summed_cross_entropy(targets, self.head.weight, target_tokens, label_smoothing)
        logits: Tensor = self.head(targets)
        return logits

    def embed_conditions(self, conditions: Conditions | None) -> Added | None:
        """Returns what conditions add to latents, context and targets; of none nothing."""
        if conditions is None:
            return None
        if self.condition_embedding is None:
            raise ValueError("conditions are given to a model that knows none.")
        added: Added = self.condition_embedding(conditions)
        return added

    def embed_latents(self, batch: int, added: Added | None = None) -> Float[Tensor, "B M D"]:
        """Returns the latent tokens as they are before they have read anything."""
        latents = self.latents.expand(batch, -1, -1)
        if added is not None:
            latents = latents + added.latents
        dropped: Tensor = self.dropout(latents)
        return dropped

    def embed_context(
        self,
        tokens: Int[Tensor, "B Nc"],
        positions: Int[Tensor, "B Nc"],
        added: Added | None = None,
    ) -> Float[Tensor, "B Nc D"]:
        """Returns what the layers see of tokens at these positions."""
        # F.embedding, not [positions]: on several threads the gradient of indexing is summed in an
        # order drawn by chance, and no run could be repeated bit for bit.
        places = F.embedding(positions, self.position_embedding)
        if added is not None:
            places = places + added.at(positions)
        context: Tensor = self.dropout(self.token_embedding(tokens) + places)
        return context

    def embed_targets(
        self, positions: Int[Tensor, "B Nt"], added: Added | None = None
    ) -> Float[Tensor, "B Nt D"]:
        """Returns what the layers see of positions to be predicted."""
        places = F.embedding(positions, self.position_embedding)
        if added is not None:
            places = places + added.at(positions)
        targets: Tensor = self.dropout(self.mask_embedding + places)
        return targets
