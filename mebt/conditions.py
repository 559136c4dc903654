"""What windows are given beside their tokens: a label each, and numbers of each latent frame."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mebt.config import MeBTConfig, StateShape

UNKNOWN = -1
"""The label of a window of which none is known."""


class Conditions(NamedTuple):
    """What B windows are given; None is known of none of them."""

    labels: Int[Tensor, " B"] | None = None
    """Places in the model's list of labels; -1: unknown."""
    states: Float[Tensor, "B t A"] | None = None
    """What `prepare_states` made of them; NaN: unknown."""

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Returns what `change` makes of each tensor there is."""
        return self._replace(
            **{name: change(x) for name, x in self._asdict().items() if x is not None}
        )

    def chunks(self, size: int) -> list["Conditions"]:
        """Cuts them into those of so many windows each, or of what is left."""
        cut: dict[str, Any] = {
            name: torch.split(x, size) for name, x in self._asdict().items() if x is not None
        }
        parts = zip(*cut.values(), strict=True)
        return [self._replace(**dict(zip(cut, part, strict=True))) for part in parts]

    def without(self, dropped: Bool[Tensor, " B"]) -> "Conditions":
        """Returns conditions of which these windows are given none."""

        def drop(values: Tensor) -> Tensor:
            unknown = torch.nan if values.is_floating_point() else UNKNOWN
            return values.masked_fill(dropped.reshape(-1, *[1] * (values.ndim - 1)), unknown)

        return self.changed(drop)

    def doubled(self) -> "Conditions":
        """Returns those of twice as many windows: the same, then the same ones given nothing."""
        whole = self.changed(lambda x: torch.cat([x, x]))
        (known, *_) = (x for x in self if x is not None)
        return whole.without(torch.arange(2 * len(known), device=known.device) >= len(known))

    def window(self, first: int, count: int) -> "Conditions":
        """Returns those of `count` latent frames from `first` on; behind the end all is unknown.

        Always another object: a `CachedPredictor` then begins anew.
        """
        if self.states is None:
            return self._replace()
        states = self.states[:, first : first + count]
        missing = count - states.shape[1]
        return self._replace(states=F.pad(states, (0, 0, 0, missing), value=torch.nan))


class Added(NamedTuple):
    """What conditions add to the vectors of a model."""

    latents: Float[Tensor, "B 1 D"]
    frames: Float[Tensor, "B t D"]
    """To context and targets in each latent frame."""
    tokens_per_frame: int

    def at(self, positions: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
        """Returns what is added at these positions."""
        batch, num_frames, _ = self.frames.shape
        rows = torch.arange(batch, device=positions.device)[:, None] * num_frames
        # F.embedding for the reason that `MeBT.embed_context` gives.
        places = rows + positions // self.tokens_per_frame
        return F.embedding(places, self.frames.flatten(0, 1))


class ConditionEmbedding(nn.Module):
    """Turns conditions into vectors. What is unknown adds nothing at all."""

    def __init__(self, config: MeBTConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.sizes = [state.inputs for state in config.states]
        self.numbers = [state.numbers for state in config.states]
        self.label = nn.Embedding(len(config.labels), config.width) if config.labels else None
        self.states = nn.ModuleList(nn.Linear(size, config.width) for size in self.sizes)

    @torch.no_grad()
    def rescale(self) -> None:
        """Makes states as large as labels, which drawn as other weights they are not."""
        for linear, numbers in zip(self.states, self.numbers, strict=True):
            assert isinstance(linear, nn.Linear)
            linear.weight.div_(numbers**0.5)

    def forward(self, conditions: Conditions) -> Added:
        """Raises ValueError if the conditions are not of the model's window."""
        labels, states = conditions
        self._check(labels, states)
        of_label, of_states = [], []
        if labels is not None and self.label is not None:
            known = (labels >= 0)[:, None]
            of_label.append(torch.where(known, self.label(labels.clamp(min=0)), 0.0)[:, None])
        if states is not None:
            for linear, part in zip(
                self.states, torch.split(states, self.sizes, dim=2), strict=True
            ):
                known = ~part.isnan().any(2, keepdim=True)  # [B t 1]
                of_states.append(torch.where(known, linear(part.nan_to_num()), 0.0))
        num_frames, height, width = self.grid
        (any_of_them, *_) = (*of_label, *of_states)
        nothing = any_of_them.new_zeros(len(any_of_them), 1, any_of_them.shape[2])
        latents = sum(of_label, start=nothing)
        frames = sum(of_states, start=latents).expand(-1, num_frames, -1)
        return Added(latents, frames, height * width)

    def _check(self, labels: Tensor | None, states: Tensor | None) -> None:
        wanted = (self.grid[0], sum(self.sizes))
        if labels is None and states is None:
            raise ValueError("conditions must hold labels or states.")
        if labels is not None and self.label is None:
            raise ValueError("labels are given to a model that knows none.")
        if states is not None and (tuple(states.shape[1:]) != wanted or not self.sizes):
            raise ValueError(
                f"states must be of {wanted[0]} latent frames with {wanted[1]} numbers each, got "
                f"{list(states.shape)}."
            )


def prepare_states(
    shapes: Sequence[StateShape],
    values: Mapping[str, Float[Tensor, "B _ _"]],
    *,
    num_frames: int,
) -> Float[Tensor, "B t A"]:
    """Returns what a model reads of states: of each latent frame the numbers of its frames.

    `values` are by name [B F width]; a name that is missing is unknown, as is NaN. Numbers are
    brought to mean 0 and deviation 1, those that count kinds become one-hot. `num_frames` counts
    latent frames. Raises ValueError for other frames than these have, and for unknown kinds.
    """
    parts = []
    batch = len(next(iter(values.values())))
    for shape in shapes:
        if shape.name not in values:
            parts.append(torch.full((batch, num_frames, shape.inputs), torch.nan))
            continue
        given = values[shape.name].float().cpu()
        if given.shape[2] != shape.width:
            raise ValueError(
                f"{shape.name} has {given.shape[2]} numbers a frame, but the model knows "
                f"{shape.width}."
            )
        made = _one_hot(shape, given) if shape.kinds else _normal(shape, given)
        parts.append(_by_latent_frame(made, shape, num_frames))
    return torch.cat(parts, dim=2)


def _normal(shape: StateShape, values: Tensor) -> Tensor:
    return (values - torch.tensor(shape.mean)) / torch.tensor(shape.std)


def _one_hot(shape: StateShape, values: Tensor) -> Tensor:
    known = ~values.isnan()
    whole = values.nan_to_num().long()
    wrong = known & ((whole != values) | (whole < 0) | (whole >= shape.kinds))
    if wrong.any():
        raise ValueError(
            f"{shape.name} is {float(values[wrong][0]):g}, but the model knows the whole numbers "
            f"0 … {shape.kinds - 1}."
        )
    hot = F.one_hot(torch.where(known, whole, 0), shape.kinds).float()  # [B F width kinds]
    return hot.masked_fill(~known[..., None], torch.nan).flatten(2)


def _by_latent_frame(values: Tensor, shape: StateShape, num_frames: int) -> Tensor:
    """Puts the numbers of a latent frame's frames one behind the other [B t A]."""
    each, found = shape.frames, values.shape[1]
    if found == 1 + (num_frames - 1) * each:  # Causal: the first is a single frame.
        first = repeat(values[:, :1], "b one k -> b (one each) k", each=each)
        values = torch.cat([first, values[:, 1:]], dim=1)
    elif found != num_frames * each:
        raise ValueError(
            f"{shape.name} is given for {found} frames, but {num_frames} latent frames of {each} "
            f"each are {num_frames * each}."
        )
    return rearrange(values, "b (t each) k -> b t (each k)", each=each)
