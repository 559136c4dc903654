"""The network of a Cosmos tokenizer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.cosmos.config import CosmosConfig
from tokenizer.cosmos.layers import (
    Down,
    Resolution,
    Up,
    factorised,
    frame_norm,
    from_patches,
    middle,
    place_conv,
    to_patches,
)
from tokenizer.fsq import PaperFSQ
from tokenizer.layers import activate, channels_last


class Encoder(nn.Module):
    """Patches to features, the finest resolution first."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        channels = config.width
        self.stem = factorised(3 * config.patch**3, channels)
        self.resolutions = nn.ModuleList()
        for wide, axes in zip(config.multipliers, config.encoder_resampling, strict=True):
            out = config.width * wide
            resize = Down(out, axes) if any(axes) else nn.Identity()
            self.resolutions.append(Resolution([channels, *config.blocks * [out]], resize))
            channels = out
        self.middle = middle(channels)
        self.norm = frame_norm(channels)
        self.head = factorised(channels, config.latent_width)

    def forward(self, patches: Float[Tensor, "B P T H W"]) -> Float[Tensor, "B D t h w"]:
        """Encodes."""
        x = channels_last(self.stem(patches))
        for resolution in self.resolutions:
            x = resolution(x)
        features: Tensor = self.head(activate(self.norm(self.middle(x))))
        return features


class Decoder(nn.Module):
    """Features to patches, the coarsest resolution first."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        channels = config.width * config.multipliers[-1]
        self.stem = factorised(config.latent_width, channels)
        self.middle = middle(channels)
        self.resolutions = nn.ModuleList()
        widths = reversed(config.multipliers)
        for wide, axes in zip(widths, config.decoder_resampling, strict=True):
            out = config.width * wide
            resize = Up(out, axes) if any(axes) else nn.Identity()
            self.resolutions.append(Resolution([channels, *(config.blocks + 1) * [out]], resize))
            channels = out
        self.norm = frame_norm(channels)
        self.head = factorised(channels, 3 * config.patch**3)

    def forward(self, features: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B P T H W"]:
        """Decodes."""
        x = self.middle(channels_last(self.stem(features)))
        for resolution in self.resolutions:
            x = resolution(x)
        patches: Tensor = self.head(activate(self.norm(x)))
        return patches


class Cosmos(nn.Module):
    """Turns clips into tokens and tokens into clips, as `VQGAN` does, by published weights.

    Clips are float32 [B, 3, T, H, W] in -0.5 … 0.5, of 1 + k * downsample frames; the network
    itself computes in -1 … 1. A clip goes through as a whole: its attention reads all before.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_embedding = place_conv(config.latent_width, config.embedding_dim)
        self.codebook = PaperFSQ(config.levels)
        self.from_embedding = place_conv(config.embedding_dim, config.latent_width)
        self.decoder = Decoder(config)

    def features(self, video: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Returns the encoder's output before quantisation. Raises ValueError on odd sizes."""
        self.config.grid(*video.shape[2:])
        embedded: Tensor = self.to_embedding(self.encoder(to_patches(2 * video, self.config.patch)))
        return embedded

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "B C T H W"]) -> Int[Tensor, "B t h w"]:
        """Returns the token of each position's nearest codebook vector."""
        return self.codebook.encode(self.features(video))

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "B t h w"]) -> Float[Tensor, "B C T H W"]:
        """Returns the clips of token grids, around -0.5 … 0.5, not clamped."""
        features = self.from_embedding(self.codebook.embed(tokens))
        return from_patches(self.decoder(features), self.config.patch) / 2
