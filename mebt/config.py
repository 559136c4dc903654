"""What fixes every parameter shape of MeBT."""

from dataclasses import dataclass
from math import prod
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

    The defaults are the published ones.
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
    which learns several times slower."""
    embedding_dropout: float = 0.0
    """Share of embedded tokens' entries that training sets to zero; against learning by heart."""
    residual_dropout: float = 0.0
    """The same, of what each layer adds."""
    attention_dropout: float = 0.0
    """The same, of the weights with which tokens read one another."""

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
class MeBTConfig(MeBTShape):
    """Fixes every parameter shape: equal configs, interchangeable weights.

    So the number of heads is never 0 in it.
    """

    codebook_size: int
    """Vectors K in the frozen tokenizer's codebook."""
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of one window, in tokens."""

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

    @property
    def num_tokens(self) -> int:
        """Tokens N of one window."""
        return prod(self.grid)
