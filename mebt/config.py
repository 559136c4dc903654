"""What fixes every parameter shape of MeBT."""

import re
from dataclasses import dataclass
from math import isfinite, prod
from typing import Literal, get_args

BlockKind = Literal["stream", "published"]

LAYERS = ("encode", "process", "decode", "refresh", "dense")
"""Layer kinds: latents read context; latents read latents; targets read latents; latents read
latents and targets; context and targets read themselves."""

PUBLISHED_LAYERS = (
    *("encode", "process") * 6,
    *("encode", "decode"),
    *("refresh", "decode") * 5,
)
"""The 24 layers of all published experiments."""


MAX_TOKENS = 1 << 24
"""Tokens of one window beyond which a config is not believed."""
LABEL, INTEGERS = "label", "integers"
"""The condition that is a label; and what follows a state's name and a colon if it counts kinds."""
STATE_NAME = re.compile(r"[A-Za-z][\w.]{0,99}", re.ASCII)
MAX_LABELS, MAX_STATES = 1 << 16, 1 << 16
"""Labels, and numbers of a latent frame, beyond which a config is not believed."""


def _check_count(name: str, value: object, least: int, most: int) -> None:
    # Also of the right type: a config may come from the header of somebody else's file.
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number {least} … {most}, got {value!r}.")


def _usual_heads(width: int) -> int:
    """Returns the most heads that divide a width and have no fewer entries than usual."""
    most = max(1, width // (64 if width >= 512 else 32))
    return next(heads for heads in range(most, 0, -1) if width % heads == 0)


@dataclass(frozen=True, kw_only=True)
class MeBTShape:
    """The shape of MeBT, but for what the tokens tell: their codebook and their grid.

    The defaults are the published ones, but for `block`.
    """

    layers: tuple[str, ...] = PUBLISHED_LAYERS
    """Layer kinds in order; see `MeBT.forward`."""
    width: int = 1024
    """Entries of the vector that each token is inside the model."""
    num_heads: int = 0
    """Heads of each attention; they divide the width. 0: each has 64 entries of the width, from 512
    on, and 32 below."""
    num_latents: int = 256
    """Learned latent tokens; 0 if all layers are `dense`."""
    block: BlockKind = "stream"
    """What each layer adds to: `stream`, the vectors it was given, or as `published` their norm,
    which learns more slowly."""
    embedding_dropout: float = 0.0
    """Share of embedded tokens' entries that training sets to zero; against learning by heart."""
    residual_dropout: float = 0.0
    """The same, of what each layer adds."""
    attention_dropout: float = 0.0
    """The same, of the weights with which tokens read one another."""
    conditions: tuple[str, ...] = ()
    """What it is given beside tokens: `label`, that of each video, and names of the store's numbers
    of each frame, such as `action`; `action:integers` if these count kinds, 0, 1, …"""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers must name at least one layer.")
        if unknown := set(self.layers) - set(LAYERS):
            raise ValueError(f"unknown layer {min(unknown)!r}; choose from {', '.join(LAYERS)}.")
        if self.layers[-1] not in ("decode", "dense"):
            raise ValueError(
                f"the last layer is {self.layers[-1]!r}, which changes no prediction; end with "
                "decode or dense."
            )
        if self.block not in get_args(BlockKind):
            raise ValueError(f"unknown block {self.block!r}; choose from stream, published.")
        for name, least in (("width", 1), ("num_heads", 0), ("num_latents", 0)):
            _check_count(name, getattr(self, name), least, 1 << 16)
        if self.num_heads and self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}."
            )
        for name in ("embedding_dropout", "residual_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        names = self.condition_names
        for name in names:
            if not STATE_NAME.fullmatch(name) or f"{LABEL}:{INTEGERS}" in self.conditions:
                raise ValueError(
                    f"{name!r} is no condition: give {LABEL}, NAME or NAME:{INTEGERS} of a state."
                )
        if len(set(names)) < len(names):
            raise ValueError(f"conditions must name different things, got {names}.")

    @property
    def condition_names(self) -> list[str]:
        """Names of the conditions, whatever their numbers mean."""
        return [name.removesuffix(f":{INTEGERS}") for name in self.conditions]

    def check_trainable(self) -> None:
        """Raises ValueError if some layers do nothing, or no prediction depends on the context.

        Such models may be loaded, since there are published ones, but never learn what they could.
        """
        kinds = set(self.layers)
        if not self.num_latents and kinds != {"dense"}:
            raise ValueError(
                f"num_latents is 0, but layer {min(kinds - {'dense'})!r} needs latent tokens."
            )
        last_decode = max((i for i, kind in enumerate(self.layers) if kind == "decode"), default=-1)
        if useless := set(self.layers[last_decode + 1 :]) - {"dense"}:
            raise ValueError(
                f"layer {min(useless)!r} changes no prediction: no decode follows that would read "
                "the latent tokens."
            )
        if "dense" in kinds:
            return
        if "encode" not in self.layers[:last_decode]:
            raise ValueError(
                "no prediction would depend on the context: put encode before the last decode, or "
                "use dense."
            )


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """How a model reads the numbers that each frame has under one name."""

    name: str
    width: int
    """Numbers of a frame."""
    frames: int
    """Frames of a latent frame whose numbers are read one behind the other."""
    mean: tuple[float, ...] = ()
    """Of each number of a frame, in what the model learned from."""
    std: tuple[float, ...] = ()
    kinds: int = 0
    """Each number is one of so many kinds, 0, 1, …; 0: it measures something."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not STATE_NAME.fullmatch(self.name):
            raise ValueError(f"a state must have a name, got {self.name!r}.")
        for name in ("width", "frames"):
            _check_count(f"{name} of {self.name}", getattr(self, name), 1, MAX_STATES)
        _check_count(f"kinds of {self.name}", self.kinds, 0, MAX_STATES)
        _check_count(f"inputs of {self.name}", self.inputs, 1, MAX_STATES)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != (0 if self.kinds else self.width) or not all(map(isfinite, values)):
                raise ValueError(f"{name} of {self.name} must be finite, one for each number.")
        if min(self.std, default=1.0) <= 0:
            raise ValueError(f"std of {self.name} must be above 0, got {min(self.std)}.")

    @property
    def numbers(self) -> int:
        """Numbers of a latent frame."""
        return self.width * self.frames

    @property
    def inputs(self) -> int:
        """Inputs that they are to a model."""
        return self.numbers * max(1, self.kinds)


@dataclass(frozen=True, kw_only=True)
class MeBTConfig(MeBTShape):
    """Fixes every parameter shape: equal configs, interchangeable weights.

    So the number of heads is never 0 in it.
    """

    codebook_size: int
    """Vectors K in the frozen tokenizer's codebook."""
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of one window, in tokens."""
    labels: tuple[str, ...] = ()
    """Labels that it knows, if `conditions` names them."""
    states: tuple[StateShape, ...] = ()
    """The states that `conditions` names, in that order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_heads:
            object.__setattr__(self, "num_heads", _usual_heads(self.width))
        _check_count("codebook_size", self.codebook_size, 1, 1 << 31)
        if len(self.grid) != 3:
            raise ValueError(f"grid must be (t, h, w), got {self.grid}.")
        for size in self.grid:
            _check_count("grid", size, 1, MAX_TOKENS)
        _check_count("the number of tokens", self.num_tokens, 1, MAX_TOKENS)
        self._check_conditions()

    def _check_conditions(self) -> None:
        known = [LABEL] if self.labels else []
        known += [s.name + (f":{INTEGERS}" if s.kinds else "") for s in self.states]
        if sorted(known) != sorted(self.conditions):
            raise ValueError(f"conditions are {list(self.conditions)}, but it knows {known}.")
        if not all(isinstance(label, str) and label for label in self.labels):
            raise ValueError("labels must be texts that are not empty.")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) > MAX_LABELS:
            raise ValueError(f"labels must differ, and be {MAX_LABELS:,} at most.")

    @property
    def num_tokens(self) -> int:
        """Tokens N of one window."""
        return prod(self.grid)
