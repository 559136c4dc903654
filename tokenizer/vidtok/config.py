"""What fixes every parameter shape of a VidTok tokenizer."""

from dataclasses import dataclass
from typing import ClassVar

from tokenizer.config import FiniteConfig, check_levels, divide


@dataclass(frozen=True, kw_only=True)
class VidTokConfig(FiniteConfig):
    """The shape of a VidTok tokenizer. The defaults are those of `vidtok_fsq_causal_488_262144`."""

    kind: ClassVar[str] = "vidtok"
    what: ClassVar[str] = "A VidTok tokenizer"

    levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8)
    """Levels of each entry of a codebook vector."""
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each resolution, the finest first, in widths. Each but the last halves space."""
    blocks: int = 2
    """Pairs of residual blocks of a resolution; the decoder has one more."""
    halved: tuple[int, ...] = (1, 2)
    """Resolutions, the finest is 0, after which the encoder halves time, too."""
    doubled: tuple[int, ...] = (1, 2)
    """Resolutions after which the decoder doubles time, too."""
    still: bool = False
    """Whether layers see the first frame before it, as version 1.1 does, or zeros."""
    linear: bool = False
    """Whether time is doubled by interpolation, of version 1.1, or by copies."""

    def __post_init__(self) -> None:
        # Types too: a config may come from the header of somebody else's file.
        for name, limit in {"width": 1 << 12, "blocks": 16}.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number 1 … {limit}, got {value!r}.")
        for name in ("still", "linear"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if not self.levels:
            raise ValueError("levels must be some numbers, such as [8, 8, 8, 8, 8, 8].")
        check_levels(self.levels)
        many = self.multipliers
        if not 2 <= len(many) <= 8 or not all(type(n) is int and 1 <= n <= 64 for n in many):
            raise ValueError(f"multipliers must be 2 to 8 numbers 1 … 64, got {list(many)}.")
        last = len(many) - 1
        for name, known in (("halved", range(last)), ("doubled", range(1, last + 1))):
            chosen = getattr(self, name)
            if not all(type(n) is int and n in known for n in chosen) or len(set(chosen)) < len(
                chosen
            ):
                raise ValueError(
                    f"{name} must be of {known[0]} … {known[-1]}, each once, got {list(chosen)}."
                )
        if len(self.halved) != len(self.doubled):
            raise ValueError(
                f"time is halved after {list(self.halved)}, but doubled after {list(self.doubled)}."
            )

    @property
    def downsample(self) -> tuple[int, int, int]:
        """Pixels per token along time, height and width."""
        side = 1 << (len(self.multipliers) - 1)
        return 1 << len(self.halved), side, side

    @property
    def about(self) -> str:
        """Its make, in a few words."""
        return f"VidTok, width {self.width}"

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the latent grid (t, h, w) of a clip. Raises ValueError if it does not divide."""
        return divide((num_frames, height, width), self.downsample, alone=1)
