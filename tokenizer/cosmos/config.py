"""What fixes every parameter shape of a Cosmos tokenizer."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from tokenizer.config import FiniteConfig, check_downsample, check_levels, divide


class Resampling(NamedTuple):
    """Which axes a layer halves or doubles."""

    time: bool
    space: bool


@dataclass(frozen=True, kw_only=True)
class CosmosConfig(FiniteConfig):
    """The shape of a Cosmos tokenizer. The defaults are those of DV8x16x16."""

    kind: ClassVar[str] = "cosmos"
    what: ClassVar[str] = "A Cosmos tokenizer"

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Levels of each entry of a codebook vector."""
    downsample: tuple[int, int, int] = (8, 16, 16)
    """Pixels per token along time, height and width; height and width are alike."""
    width: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    """Channels of each resolution, the finest first, in widths."""
    blocks: int = 2
    """Residual blocks of a resolution; the decoder has one more."""
    latent_width: int = 16
    """Channels between the encoder and the codebook's entries."""
    patch: int = 4
    """Pixels of a Haar patch along each axis."""
    mirrored: bool = True
    """Whether the decoder doubles time where the encoder halved it, or as early as it can."""

    def __post_init__(self) -> None:
        # Types too: a config may come from the header of somebody else's file.
        most = {"width": 1 << 12, "blocks": 16, "latent_width": 1 << 12}
        for name, limit in most.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number 1 … {limit}, got {value!r}.")
        if type(self.mirrored) is not bool:
            raise ValueError(f"mirrored must be true or false, got {self.mirrored!r}.")
        if not self.levels:
            raise ValueError("levels must be some numbers, such as [8, 8, 8, 5, 5, 5].")
        check_levels(self.levels)
        check_downsample(self.downsample)
        many = self.multipliers
        if not 1 <= len(many) <= 8 or not all(type(n) is int and 1 <= n <= 64 for n in many):
            raise ValueError(f"multipliers must be 1 to 8 numbers 1 … 64, got {list(many)}.")
        if (type(self.patch), self.patch) not in {(int, 1 << n) for n in range(5)}:
            raise ValueError(f"patch must be 1, 2, 4, 8 or 16, got {self.patch!r}.")
        self._check_resampling()

    def _check_resampling(self) -> None:
        """Raises ValueError unless patches and layers make up `downsample`, in both directions."""
        t, h, w = self.downsample
        said = f"downsample {list(self.downsample)} in patches of {self.patch}"
        if h != w or min(t, h) < self.patch:
            raise ValueError(f"{said}: height and width must be alike, and a patch at least.")
        wanted = (t // self.patch, h // self.patch)
        for layers in (self.encoder_resampling, self.decoder_resampling):
            found = tuple(2 ** sum(axis) for axis in zip(*layers, strict=True))
            if found != wanted:
                raise ValueError(f"{said} is not what {len(self.multipliers)} resolutions make.")

    @property
    def about(self) -> str:
        """Its make, in a few words."""
        made = f"Cosmos, width {self.width}, patches of {self.patch}"
        return made if self.mirrored else f"{made}, time doubled early"

    @property
    def _halvings(self) -> tuple[int, int]:
        """How often layers halve time, and height and width."""
        t, h, _ = (factor.bit_length() - self.patch.bit_length() for factor in self.downsample)
        return t, h

    @property
    def encoder_resampling(self) -> tuple[Resampling, ...]:
        """What follows each resolution, the finest first; nothing the last."""
        t, s = self._halvings
        layers = [Resampling(n < t, n < s) for n in range(len(self.multipliers) - 1)]
        return (*layers, Resampling(False, False))

    @property
    def decoder_resampling(self) -> tuple[Resampling, ...]:
        """What follows each resolution, the coarsest first; nothing the last."""
        t, s = self._halvings
        layers = []
        for n in range(len(self.multipliers) - 1):
            time = 0 < n <= t if self.mirrored else n < t
            layers.append(Resampling(time, time or (n < s and s > t)))
        return (*layers, Resampling(False, False))

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the latent grid (t, h, w) of a clip. Raises ValueError if it does not divide."""
        return divide((num_frames, height, width), self.downsample, alone=1)
