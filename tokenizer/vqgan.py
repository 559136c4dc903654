"""The 3D VQGAN: video to a grid of tokens and back (TATS, ECCV 2022, section 3.1)."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.codebook import Codebook
from tokenizer.config import VQGANConfig
from tokenizer.fsq import FSQ
from tokenizer.layers import Conv3d, Decoder, Encoder, Past

BEFORE_TOKENS = ("encoder", "to_embedding", "codebook")
"""Parts that a clip's tokens depend on."""


class VQGANOutput(NamedTuple):
    """One training pass: see `VQGAN.forward`."""

    reconstruction: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    tokens: Tensor


class VQGAN(nn.Module):
    """Turns clips into tokens and tokens into clips.

    Clips are float32 [B, 3, T, H, W] in -0.5 … 0.5; their sizes must be multiples of
    `config.downsample`, and if `config.causal` one frame more. A token grid is [B, t, h, w] with
    values 0 … codebook_size - 1.
    """

    tokens_of: str | None = None
    """Identity of the tokenizer whose tokens these are, if the decoder alone has learned more."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        deep = config.width << config.num_stages
        self.encoder = Encoder(config)
        self.to_embedding = Conv3d(deep, config.embedding_dim, (1, 1, 1))
        self.codebook = (
            FSQ(config.levels)
            if config.levels
            else Codebook(config.codebook_size, config.embedding_dim)
        )
        self.from_embedding = Conv3d(config.embedding_dim, deep, (1, 1, 1))
        self.decoder = Decoder(config)
        self.fixed_tokens = False

    def fix_tokens(self) -> None:
        """Lets the decoder alone learn from now on: every clip keeps its tokens."""
        self.fixed_tokens = True
        for name in BEFORE_TOKENS:
            self.get_submodule(name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "VQGAN":
        """Turns training on or off; with fixed tokens off for all that makes them."""
        super().train(mode)
        if self.fixed_tokens:
            for name in BEFORE_TOKENS:
                # Else batch norms and the codebook would follow the clips.
                self.get_submodule(name).eval()
        return self

    def features(
        self, video: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Float[Tensor, "B D t h w"]:
        """Returns the encoder's output before quantisation. Raises ValueError on odd sizes."""
        self._check_past(past)
        self.config.grid(*video.shape[2:], begins=not past)
        embedded: Tensor = self.to_embedding(self.encoder(video, past))
        return embedded

    @torch.no_grad()
    def encode(
        self, video: Float[Tensor, "B C T H W"], past: Past | None = None
    ) -> Int[Tensor, "B t h w"]:
        """Returns the token of each position's nearest codebook vector.

        If the tokenizer is causal, a long video may come in pieces, the first of 1 + 4k frames and
        the others of 4k (with downsample [4, …]): give the same dict, empty at first, as `past` of
        all, and the tokens are those of the whole. The same holds for `decode`, with another dict.
        """
        features = self.features(video, past).float()
        b, _, t, h, w = features.shape
        tokens = self.codebook.nearest(rearrange(features, "b d t h w -> (b t h w) d"))
        return rearrange(tokens, "(b t h w) -> b t h w", b=b, t=t, h=h, w=w)

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "B t h w"], past: Past | None = None
    ) -> Float[Tensor, "B C T H W"]:
        """Returns the clips of token grids, around -0.5 … 0.5.

        They are clamped to `config.pixel_range` if there is one, else not at all. For `past` see
        `encode`.
        """
        self._check_past(past)
        embeddings = self.codebook.embed(tokens)
        video: Tensor = self.decoder(self.from_embedding(embeddings), past)
        return video.clamp_(*self.config.pixel_limits) if self.config.pixel_range else video

    def _check_past(self, past: Past | None) -> None:
        if past is not None and not self.config.causal:
            raise ValueError("only a causal tokenizer takes a video in pieces.")

    def forward(
        self,
        video: Float[Tensor, "B C T H W"],
        *,
        restart_threshold: float = 0.0,
        generator: Generator | None = None,
    ) -> VQGANOutput:
        """Reconstructs `video`; in training mode the codebook follows the features, once.

        `restart_threshold` is the moving count of uses per step below which a codebook vector is
        replaced by a feature of this batch, likely one that is badly kept; 0 never replaces one.
        """
        features = self.features(video)
        quantized = self.codebook(
            features.float(), restart_threshold=restart_threshold, generator=generator
        )
        reconstruction = self.decoder(self.from_embedding(quantized.embeddings))
        return VQGANOutput(
            reconstruction, quantized.commitment_loss, quantized.perplexity, quantized.tokens
        )
