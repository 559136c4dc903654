"""MeBT as the sampler needs it: computes nothing twice, and only what is read."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mebt.conditions import Added, Conditions
from mebt.linear import linear
from mebt.model import Block, KeysValues, MeBT

Attend = Callable[[Block, Tensor, KeysValues], Tensor]
"""`Block.attend`, perhaps compiled."""


@dataclass(frozen=True)
class LazyLogits:
    """Logits [B Nt K] of the model, of which `logits[:, start:stop]` computes so many rows.

    In the last layers no target sees another, so the rows that nobody reads cost nothing there.
    """

    model: MeBT
    batch: int
    targets: Float[Tensor, "B Nt D"] | Float[Tensor, "1 Nt D"]
    """Of every window, or of one if they are the same in all."""
    last: list[tuple[Block, KeysValues]]
    """Layers that the targets have not been through yet, and what they read there."""
    attend: Attend

    def __getitem__(self, part: tuple[slice, slice]) -> Float[Tensor, "B Nr K"]:
        """Computes the logits of these rows."""
        hidden = self.model.norm(self.hidden(self.targets[part]))
        return linear(hidden, self.model.head.weight).expand(self.batch, -1, -1)

    def hidden(self, targets: Float[Tensor, "_ Nr D"]) -> Float[Tensor, "_ Nr D"]:
        """Takes some of the targets through the last layers."""
        for block, keys_values in self.last:
            targets = self.attend(block, targets, keys_values)
        return targets


class CachedPredictor:
    """Predicts as `model` does, but remembers what it computed of the context tokens.

    In `encode` layers their keys and values depend on token, position and conditions alone, as long
    as no `dense` layer came before. So they are kept for every position, and only those of tokens
    that are new there are computed. Each has a slot, and those of the context are brought to the
    front, where they are read as they lie. `reset` it before the next batch of windows: a sample
    must not depend, even in its last bits, on what was drawn before it.

    What is predicted of an empty window depends on no token: without conditions it is computed
    once, for all batches. The model's weights must stay as they are.

    With `compiled`, torch.compile makes kernels of the layers when they are first used, which takes
    some 20 seconds and a C++ compiler, or on a GPU Triton: the same numbers to rounding.
    """

    def __init__(self, model: MeBT, *, compiled: bool = False) -> None:
        self.model = model
        self.attend: Attend = Block.attend
        self.keys_values: Callable[..., KeysValues] = Block.keys_values
        if compiled:
            # Of the layers alone, which all share it: a whole pass takes six minutes to compile.
            self.attend = torch.compile(Block.attend, dynamic=True)
            self.keys_values = torch.compile(Block.keys_values, dynamic=True)
        layers = model.config.layers
        fixed = layers[: layers.index("dense")] if "dense" in layers else layers
        self.cached_layers = [index for index, kind in enumerate(fixed) if kind == "encode"]
        self.num_first = len(layers) - _num_rowwise(layers)
        self.calls = 0
        """How often it has predicted."""
        self.conditions: Conditions | None = None
        """What the windows at hand are given."""
        self.added: Added | None = None
        self.empty: tuple[Tensor, Tensor] | None = None
        """Positions of an empty window, and what the head sees of them [1 N D]."""
        self.reset()

    def reset(self) -> None:
        """Forgets the context: the next windows are others."""
        self.tokens: Tensor | None = None
        self.cache: dict[int, KeysValues] = {}
        self.slots: Tensor | None = None
        """Slot of each position [B N]."""

    def state(self) -> dict[str, Tensor]:
        """Returns, on the CPU, what the next windows' predictions depend on of those before.

        Those that are given conditions begin anew, as each window's are an object of its own.
        """
        if self.tokens is None or self.slots is None or self.conditions is not None:
            return {}
        both = {"tokens": self.tokens, "slots": self.slots}
        return {name: kept.to("cpu", copy=True) for name, kept in both.items()}

    @torch.inference_mode()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on as the predictor would have whose `state` this is; computes what it had kept.

        Raises ValueError if it is none of such windows.
        """
        self.reset()
        self.conditions = self.added = None
        if not state:
            return
        device = self.model.latents.device
        tokens, slots = (state[name].to(device, copy=True) for name in ("tokens", "slots"))
        every = torch.arange(self.model.config.num_tokens, device=device).expand(len(slots), -1)
        if not torch.equal(slots.sort(dim=1).values, every):
            raise ValueError("its slots are not one for each position")
        if tokens.shape != slots.shape or int(tokens.max()) >= self.model.config.codebook_size:
            raise ValueError("its tokens are not those of such windows")
        self.tokens, self.slots = tokens, slots
        self._keep(tokens.clamp(min=0), every, slots)  # What was never known is not read.

    @torch.inference_mode()
    def __call__(
        self,
        context_tokens: Int[Tensor, "B Nc"],
        context_positions: Int[Tensor, "B Nc"],
        target_positions: Int[Tensor, "B Nt"],
        *,
        conditions: Conditions | None = None,
    ) -> LazyLogits:
        """Returns what `MeBT.forward` does, to rounding; its rows are computed when read.

        Forgets the context if `conditions` is not the very object that it was in the last call.
        """
        self.calls += 1
        if conditions is not self.conditions:
            self.reset()
            self.conditions, self.added = conditions, self.model.embed_conditions(conditions)
        if context_positions.shape[1]:
            self._update_cache(context_tokens, context_positions)
        elif conditions is None:
            ordered = target_positions.sort(dim=1).values
            if torch.equal(ordered, ordered[:1].expand_as(ordered)):
                return self._predict_empty(target_positions, ordered[0])
        return self._predict(context_tokens, context_positions, target_positions)

    def _predict_empty(
        self, targets: Int[Tensor, "B Nt"], positions: Int[Tensor, " Nt"]
    ) -> LazyLogits:
        """Predicts windows of which nothing is known: the same positions in any order."""
        if self.empty is None or not torch.equal(self.empty[0], positions):
            # Not compiled: no other pass has these shapes.
            plain = CachedPredictor(self.model)
            logits = plain._predict(positions[None, :0], positions[None, :0], positions[None])
            self.empty = positions, logits.hidden(logits.targets)
        hidden = self.empty[1]
        if not torch.equal(targets, positions.expand_as(targets)):
            hidden = hidden[0, torch.searchsorted(positions, targets)]
        return LazyLogits(self.model, len(targets), hidden, [], self.attend)

    def _predict(
        self, context_tokens: Tensor, context_positions: Tensor, target_positions: Tensor
    ) -> LazyLogits:
        model = self.model
        # A copy, laid out as what later layers read: nothing is compiled for the first alone.
        latents = model.embed_latents(len(target_positions), self.added).contiguous()
        targets = model.embed_targets(target_positions, self.added)
        context = targets[:, :0]
        if "dense" in model.config.layers:
            context = model.embed_context(context_tokens, context_positions, self.added)
        num_known, num_context = context_positions.shape[1], context.shape[1]
        last: list[tuple[Block, KeysValues]] = []
        for index, (layer, block) in enumerate(zip(model.config.layers, model.blocks, strict=True)):
            assert isinstance(block, Block)
            both = torch.cat([context, targets], dim=1) if layer == "dense" else targets
            match layer:
                case "encode" if index in self.cache:
                    keys, values = self.cache[index]
                    read = (keys[:, :num_known], values[:, :num_known])
                    latents = self.attend(block, latents, read)
                case "encode":
                    latents = self.attend(block, latents, self.keys_values(block, context))
                case "process":
                    latents = self.attend(block, latents, self.keys_values(block, latents))
                case "refresh":
                    latents = self.attend(block, latents, self.keys_values(block, latents, targets))
                case _ if index >= self.num_first:
                    source = latents if layer == "decode" else both
                    last.append((block, self.keys_values(block, source)))
                case "decode":
                    targets = self.attend(block, targets, self.keys_values(block, latents))
                case "dense":
                    both = self.attend(block, both, self.keys_values(block, both))
                    context, targets = both[:, :num_context], both[:, num_context:]
                case _:
                    raise AssertionError(f"nothing is said of what {layer} reads")
        return LazyLogits(model, len(targets), targets, last, self.attend)

    def _update_cache(self, tokens: Tensor, positions: Tensor) -> None:
        """Computes keys and values of the context tokens that were not there before."""
        if self.tokens is None:
            self.tokens = tokens.new_full((len(tokens), self.model.config.num_tokens), -1)
            order = torch.arange(self.tokens.shape[1], device=tokens.device)
            self.slots = order.repeat(len(tokens), 1)
        slots = self._bring_forward(positions)
        is_new = self.tokens.gather(1, positions) != tokens
        count = int(is_new.sum(1).max())
        # Windows differ in how many are new to them: some compute a few once more.
        chosen = is_new.int().argsort(dim=1, descending=True, stable=True)[:, :count]  # [B count]
        tokens, positions, slots = (x.gather(1, chosen) for x in (tokens, positions, slots))
        self.tokens.scatter_(1, positions, tokens)
        self._keep(tokens, positions, slots)

    def _keep(
        self, tokens: Int[Tensor, "B Nc"], positions: Int[Tensor, "B Nc"], slots: Tensor
    ) -> None:
        """Computes keys and values of tokens, and puts them into their slots [B Nc]."""
        assert self.tokens is not None
        context = self.model.embed_context(tokens, positions, self.added)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        for index in self.cached_layers:
            block = self.model.blocks[index]
            assert isinstance(block, Block)
            keys, values = self.keys_values(block, context)
            if index not in self.cache:
                empty = (*self.tokens.shape, keys.shape[-1])  # [B N D], by slot
                self.cache[index] = (keys.new_empty(empty), values.new_empty(empty))
            for kept, new in zip(self.cache[index], (keys, values), strict=True):
                kept[rows, slots] = new

    def _bring_forward(self, positions: Int[Tensor, "B Nc"]) -> Int[Tensor, "B Nc"]:
        """Lets these positions have the first slots, in any order; returns which each has."""
        assert self.slots is not None
        count = positions.shape[1]
        slots = self.slots.gather(1, positions)
        is_behind = slots >= count  # [B Nc]: in the context, but its slot is not among the first.
        most = int(is_behind.sum(1).max())
        if not most:
            return slots
        # As many of the first slots are others', which change places with those behind.
        is_others = torch.ones_like(self.slots, dtype=torch.bool).scatter_(1, slots, False)
        first, behind = (
            x.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            for x in (is_others[:, :count], is_behind)
        )
        behind, needed = slots.gather(1, behind), is_behind.gather(1, behind)
        first = torch.where(needed, first, behind)  # Rows differ in how many: the rest stay.
        holders = self.slots.argsort(dim=1)  # Inverse: the position that has each slot [B N].
        pairs = [(first, behind), (behind, first)]
        moved = [(holders.gather(1, source), target) for source, target in pairs]
        for position, target in moved:
            self.slots.scatter_(1, position, target)
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        for kept in itertools.chain(*self.cache.values()):
            kept[rows, first], kept[rows, behind] = kept[rows, behind], kept[rows, first]
        return self.slots.gather(1, positions)


def _num_rowwise(layers: tuple[str, ...]) -> int:
    """Counts the last layers, in which no target depends on what comes of the others there."""
    count = 0
    while count < len(layers) and layers[-1 - count] == "decode":
        count += 1
    # A dense layer reads what all targets were before it.
    return count + (layers[: len(layers) - count][-1:] == ("dense",))
