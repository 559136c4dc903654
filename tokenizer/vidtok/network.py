"""The network of a VidTok tokenizer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.fsq import PaperFSQ
from tokenizer.layers import activate
from tokenizer.vidtok.config import VidTokConfig
from tokenizer.vidtok.layers import (
    BOTH,
    Down,
    PlaceNorm,
    Resolution,
    Up,
    ZeroConv,
    before,
    middle,
)


class Encoder(nn.Module):
    """Video to features, the finest resolution first."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        channels, still = config.width, config.still
        self.stem = ZeroConv(3, channels, BOTH, still=still)
        self.resolutions = nn.ModuleList()
        for number, wide in enumerate(config.multipliers):
            out, last = config.width * wide, number == len(config.multipliers) - 1
            time = number in config.halved
            resize = nn.Identity() if last else Down(out, time=time, still=still)
            widths = [channels, *config.blocks * [out]]
            self.resolutions.append(Resolution(widths, resize, still=still))
            channels = out
        self.middle = middle(channels, still=still)
        self.norm = PlaceNorm(channels)
        self.head = ZeroConv(channels, config.embedding_dim, BOTH, still=still)

    def forward(self, video: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Encodes."""
        x = self.stem(video)
        for resolution in self.resolutions:
            x = resolution(x)
        features: Tensor = self.head(activate(self.norm(self.middle(x))))
        return features


class Decoder(nn.Module):
    """Features to video, the coarsest resolution first."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        channels, still = config.width * config.multipliers[-1], config.still
        self.stem = ZeroConv(config.embedding_dim, channels, BOTH, still=still)
        self.middle = middle(channels, still=still)
        self.resolutions = nn.ModuleList()
        alone = int(config.linear)
        for number, wide in reversed(list(enumerate(config.multipliers))):
            out = config.width * wide
            time = number in config.doubled
            resize = Up(out, time=time, still=still, alone=alone) if number else nn.Identity()
            alone = 2 * alone if time else alone
            widths = [channels, *(config.blocks + 1) * [out]]
            self.resolutions.append(Resolution(widths, resize, still=still))
            channels = out
        self.norm = PlaceNorm(channels)
        self.head = ZeroConv(channels, 3, BOTH, still=still)

    def forward(self, features: Float[Tensor, "B D t h w"]) -> Float[Tensor, "B C T H W"]:
        """Decodes."""
        x = self.middle(self.stem(features))
        for resolution in self.resolutions:
            x = resolution(x)
        video: Tensor = self.head(activate(self.norm(x)))
        return video


class VidTok(nn.Module):
    """Turns clips into tokens and tokens into clips, as `VQGAN` does, by published weights.

    Clips are float32 [B, 3, T, H, W] in -0.5 … 0.5, of 1 + k * downsample frames; the network
    itself computes in -1 … 1, and repeats the first frame. A clip goes through as a whole.
    """

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = PaperFSQ(config.levels)
        self.decoder = Decoder(config)

    def features(self, video: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Returns the encoder's output before quantisation. Raises ValueError on odd sizes."""
        self.config.grid(*video.shape[2:])
        frames = self.config.downsample[0] - 1
        embedded: Tensor = self.encoder(before(2 * video, frames, still=True))
        return embedded

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "B C T H W"]) -> Int[Tensor, "B t h w"]:
        """Returns the token of each position's nearest codebook vector."""
        return self.codebook.encode(self.features(video))

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "B t h w"]) -> Float[Tensor, "B C T H W"]:
        """Returns the clips of token grids, around -0.5 … 0.5, not clamped."""
        video: Tensor = self.decoder(self.codebook.embed(tokens))
        return video[:, :, self.config.downsample[0] - 1 :] / 2
