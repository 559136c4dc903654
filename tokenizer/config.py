"""What fixes every parameter shape of the 3D VQGAN."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Norm = Literal["group", "batch", "layer"]
Padding = Literal["replicate", "zeros", "reflect", "circular"]

LATER = ("levels", "causal", "local", "decoder_norm", "pixel_range")
"""Fields that the first tokenizers did not have."""


def check_downsample(downsample: tuple[int, ...]) -> None:
    """Raises ValueError unless these are three powers of two, and not all 1."""
    known_factors = {(int, 1 << n) for n in range(9)}
    if len(downsample) != 3 or not {(type(f), f) for f in downsample} <= known_factors:
        raise ValueError(f"downsample must be powers of two up to 256: {downsample}.")
    if max(downsample) == 1:
        raise ValueError("downsample must shrink at least one axis, got (1, 1, 1).")


def check_pixel_range(pixel_range: tuple[int, ...]) -> None:
    """Raises ValueError unless these are the least and the largest grey level, or nothing."""
    known = all(type(level) is int and 0 <= level <= 255 for level in pixel_range)
    if pixel_range and not (known and len(pixel_range) == 2 and pixel_range[0] < pixel_range[1]):
        raise ValueError(
            "pixel_range must be two grey levels 0 … 255, the lower one first, or []: "
            f"{list(pixel_range)}."
        )


def check_levels(levels: tuple[int, ...]) -> None:
    """Raises ValueError unless these can be the levels of a codebook vector's entries."""
    known = all(type(level) is int and 2 <= level <= 1 << 16 for level in levels)
    if not known or len(levels) > 31:  # Two levels each already make all tokens there are.
        raise ValueError(f"levels must be up to 31 whole numbers 2 … 65536, got {list(levels)}.")


def divide(
    clip: tuple[int, int, int], downsample: tuple[int, int, int], *, alone: int
) -> tuple[int, int, int]:
    """Returns the latent grid (t, h, w) of a clip of these frames, height and width.

    `alone`, 0 or 1, frames at the beginning have tokens of their own. Raises ValueError if it does
    not divide.
    """
    for size, first, factor, what in zip(
        clip,
        (alone, 0, 0),
        downsample,
        ("frames", "pixels high", "pixels wide"),
        strict=True,
    ):
        if size < 1 or (size - first) % factor:
            raise ValueError(
                f"a clip of {size} {what} does not divide into tokens of {factor}; "
                f"use {'1 + ' * first}a multiple of {factor}."
            )
    frames, height, width = clip
    t, h, w = downsample
    return alone + (frames - alone) // t, height // h, width // w


class FiniteConfig:
    """What the shapes of others' tokenizers share: causal dataclasses with a codebook of levels."""

    kind: ClassVar[str]
    """What files call it."""
    causal: ClassVar[bool] = True
    levels: tuple[int, ...]

    @property
    def codebook_size(self) -> int:
        """Vectors K in the codebook: all combinations of levels."""
        return math.prod(self.levels)

    @property
    def embedding_dim(self) -> int:
        """Entries of one codebook vector."""
        return len(self.levels)

    def recorded(self) -> dict[str, Any]:
        """Returns the fields and the kind, as files remember them, in JSON's types."""
        assert dataclasses.is_dataclass(self)
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"kind": self.kind, **fields}


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """The shape of the 3D VQGAN: equal shapes have interchangeable weights.

    The defaults are those of the TATS release.
    """

    what: ClassVar[str] = "A 3D VQGAN"

    codebook_size: int = 16384
    """Vectors K in the codebook; tokens are 0 … K - 1."""
    embedding_dim: int = 256
    """Entries of one codebook vector."""
    levels: tuple[int, ...] = ()
    """Levels of each entry of a vector, such as [8, 8, 8, 5]: tokens are all combinations of them
    (FSQ), codebook_size is their product and embedding_dim their number. []: a learned codebook."""
    width: int = 32
    """Channels of the first layer; each down-sampling stage doubles them."""
    downsample: tuple[int, int, int] = (4, 8, 8)
    """Pixels per token along time, height and width; powers of two."""
    norm: Norm = "group"
    """`group`: 32 groups, `width` a multiple of 16. `batch`: by the batch in training, by running
    statistics later. `layer`: the channels of each place by themselves."""
    decoder_norm: Norm | None = None
    """The same of the decoder; null: as `norm`. With `layer` clips are made of tokens as in
    training; an encoder with `layer` begins with the same token everywhere, and learns late."""
    padding: Padding = "replicate"
    """Border of the encoder's first and down-sampling layers; all others replicate, and if `causal`
    all do in time."""
    in_channels: int = 3
    """Colours of a pixel: always 3, since videos are RGB."""
    causal: bool = False
    """Let tokens and frames depend on none that come later. The first frame has tokens of its own,
    so that with downsample [4, 8, 8] a clip has 1 + 4k frames, a picture one, and a video of any
    length goes through in pieces."""
    local: bool = False
    """Let a token depend on its own block of pixels and little around it: the encoder's residual
    blocks see one place each. What moves then changes fewer tokens, and what rests has the same
    ones, so MeBT has less to learn; the decoder is as wide as ever."""

    pixel_range: tuple[int, ...] = ()
    """Grey levels between which all pixels lie, such as [16, 235] of footage that was cut off
    there: no clip is decoded to others. []: 0 to 255."""

    def __post_init__(self) -> None:
        # Types too: a config may come from the header of somebody else's file.
        most = {"codebook_size": 1 << 31, "embedding_dim": 1 << 16, "width": 1 << 16}
        for name, limit in most.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number 1 … {limit}, got {value!r}.")
        self._check_levels()
        if (type(self.in_channels), self.in_channels) != (int, 3):
            raise ValueError(f"in_channels must be 3, since videos are RGB: {self.in_channels!r}.")
        for name in ("causal", "local"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        choices = {"norm": get_args(Norm), "padding": get_args(Padding)}
        if self.decoder_norm is not None:
            choices["decoder_norm"] = get_args(Norm)
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(known)}."
                )
        check_downsample(self.downsample)
        check_pixel_range(self.pixel_range)
        if "group" in (self.norm, self.decoder_norm) and self.width % 16:
            raise ValueError(
                f"width must be a multiple of 16 for norm 'group' (32 groups), got {self.width}."
            )

    def _check_levels(self) -> None:
        if not self.levels:
            return
        check_levels(self.levels)
        codes, entries = math.prod(self.levels), len(self.levels)
        if (self.codebook_size, self.embedding_dim) != (codes, entries):
            raise ValueError(
                f"levels {list(self.levels)} make {codes} vectors of {entries} entries: set "
                f"codebook_size to {codes} and embedding_dim to {entries}, which are "
                f"{self.codebook_size} and {self.embedding_dim}."
            )

    def recorded(self) -> dict[str, Any]:
        """Returns the fields as files and runs remember them, in JSON's types.

        Those that came later are left out while they change nothing: what was made before keeps its
        identity.
        """
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {key: value for key, value in fields.items() if value or key not in LATER}

    @property
    def about(self) -> str:
        """Its make, in a few words."""
        decoder = f" ({self.decoder_norm} in the decoder)" if self.decoder_norm else ""
        return f"width {self.width}, norm {self.norm}{decoder}, padding {self.padding}"

    @property
    def pixel_limits(self) -> tuple[float, float]:
        """The ends of `pixel_range` as the model sees pixels, in -0.5 … 0.5."""
        low, high = self.pixel_range or (0, 255)
        return low / 255 - 0.5, high / 255 - 0.5

    @property
    def num_stages(self) -> int:
        """Stages of the encoder: the axis that shrinks most needs one for each factor of two."""
        return max(self.downsample).bit_length() - 1

    @property
    def strides(self) -> tuple[tuple[int, int, int], ...]:
        """Stride of each stage: 2 along an axis until its factor is used up, then 1."""
        t, h, w = (factor.bit_length() - 1 for factor in self.downsample)
        return tuple(
            (1 + (stage < t), 1 + (stage < h), 1 + (stage < w)) for stage in range(self.num_stages)
        )

    def grid(
        self, num_frames: int, height: int, width: int, *, begins: bool = True
    ) -> tuple[int, int, int]:
        """Returns the latent grid (t, h, w) of a clip; of a later piece of one if not `begins`.

        Raises ValueError if it does not divide.
        """
        alone = int(self.causal and begins)
        return divide((num_frames, height, width), self.downsample, alone=alone)
