"""What fixes every parameter shape of MeBT."""

from dataclasses import dataclass
from math import prod

LAYERS = ("encode", "process", "decode", "refresh", "dense")
"""Layer kinds: latents read context; latents read latents; targets read latents; latents read
latents and targets; context and targets read themselves."""

PUBLISHED_LAYERS = (
    *("encode", "process") * 6,
    *("encode", "decode"),
    *("refresh", "decode") * 5,
)
"""The 24 layers of all published experiments."""


@dataclass(frozen=True, kw_only=True)
class MeBTShape:
    """The part of the model that does not depend on the tokens. Defaults are the published ones."""

    layers: tuple[str, ...] = PUBLISHED_LAYERS
    """Layer kinds in order; see `MeBT.forward`."""
    width: int = 1024
    num_heads: int = 16
    num_latents: int = 256
    """Learned latent tokens; 0 if all layers are `dense`."""
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0

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
        if self.width < 1 or self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}."
            )
        if self.num_latents < 0:
            raise ValueError(f"num_latents must not be negative, got {self.num_latents}.")
        for name in ("embedding_dropout", "residual_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class MeBTConfig(MeBTShape):
    """Fixes every parameter shape: equal configs, interchangeable weights."""

    codebook_size: int
    """Vectors K in the frozen tokenizer's codebook."""
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of one window, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_size < 1 or min(self.grid) < 1:
            raise ValueError(
                f"codebook_size and grid must be positive, got {self.codebook_size}, {self.grid}."
            )

    @property
    def num_tokens(self) -> int:
        """Tokens N of one window."""
        return prod(self.grid)
