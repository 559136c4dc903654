"""What a 3D VQGAN learns from: likeness of pixels, and if asked for of features and to critics.

The losses are those of TATS (Ge et al., ECCV 2022, section 3.1); weights of moving pixels and of
changes, and noise on what is encoded, are ours.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from tokenizer.adversarial import AXES, AdversarialVQGAN, GanLosses
from tokenizer.config import VQGANConfig
from tokenizer.losses import MARGIN, as_cut_off, change_loss, drawn_frames, reconstruction_loss
from tokenizer.vqgan import VQGAN

Batch = tuple[Tensor, Tensor, Tensor]
"""Clips with noise and without, as float32 [B, 3, T, H, W], and one frame number of each [B]."""
Objective = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
"""(model, batch, step) -> what the step is to reduce, and what to log of it."""

LEAST_NOISE = 0.3
"""In grey levels: about the deviation, 1 / sqrt(12), of what rounding to whole ones has taken."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What reconstructions are to be like; with its defaults, their videos' pixels."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference of pixels; the commitment loss has 1."""
    perceptual_weight: float = 0.0
    """Weight of the LPIPS of one frame of each clip, which needs --lpips."""
    image_gan_weight: float = 0.0
    """Weight of a discriminator that sees one frame of each clip; 0: there is none."""
    video_gan_weight: float = 0.0
    """Weight of a discriminator that sees whole clips; 0: there is none."""
    gan_feat_weight: float = 0.0
    """Weight of how far the discriminators see reconstructions from their videos."""
    gan_loss: Literal["hinge", "vanilla"] = "hinge"
    """What discriminators reduce; vanilla: the cross-entropy."""
    discriminator_start: int = 0
    """Steps before the discriminators begin to learn and to matter."""
    discriminator_width: int = 64
    """Channels of a discriminator's first layer."""
    motion_weight: float = 0.0
    """Weight of moving pixels as a whole beside all pixels evenly; 0: every pixel the same."""
    change_weight: float = 0.0
    """Weight of the mean absolute difference of changes from frame to frame: less flicker."""
    noise: float = 0.0
    """Noise added to what is encoded, while the clean video is to be decoded: tokens learn to
    ignore what a sensor adds, and are easier to predict. Each window draws its own standard
    deviation, in grey levels, from 0 to this, and at least 0.3, which is as little as rounding."""
    decoder_only: bool = False
    """Train the decoder of --init alone: tokens stay what they are, and with them token stores and
    models of them."""
    restart_threshold: float = 0.1
    """Uses per step (moving average) below which a learned code is replaced; 0: never."""

    def __post_init__(self) -> None:
        weights = [field.name for field in fields(self) if field.name.endswith("_weight")]
        for name in (*weights, "noise", "restart_threshold", "discriminator_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 1 <= self.discriminator_width <= 512:
            raise ValueError(f"discriminator_width must be 1 … 512: {self.discriminator_width}.")
        if self.gan_feat_weight and not self.critics:
            raise ValueError(
                f"gan_feat_weight is {self.gan_feat_weight}, but there is no discriminator; set "
                "image_gan_weight or video_gan_weight."
            )

    @property
    def gan_weights(self) -> dict[str, float]:
        """Weight of each kind of discriminator."""
        return {kind: getattr(self, f"{kind}_gan_weight") for kind in AXES}

    @property
    def critics(self) -> list[str]:
        """Kinds of discriminators that there are."""
        return [kind for kind, weight in self.gan_weights.items() if weight]


def logged_names(config: ObjectiveConfig) -> list[str]:
    """Names every number that is logged of a tokenizer, whichever of them a step measures."""
    return [
        *("l1", "commitment", "perplexity"),
        *(["change"] if config.change_weight else []),
        *(["lpips"] if config.perceptual_weight else []),
        *(f"{kind}_{name}" for kind in config.critics for name in GanLosses._fields),
        *("psnr", "psnr_mean_frame", "codebook_use"),
    ]


def measure_reconstruction(
    model: VQGAN, clips: Iterable[Float[Tensor, "1 3 T H W"]]
) -> dict[str, float]:
    """Measures reconstruction and codebook use on clips, beside the mean frame of each."""
    squared, squared_mean_frame, l1 = [], [], []
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    for video in clips:
        tokens = model.encode(video)
        difference = model.decode(tokens).clamp(-0.5, 0.5) - video
        squared.append(float(difference.square().mean()))
        l1.append(float(difference.abs().mean()))
        mean_frame = video.mean(2, keepdim=True) - video
        squared_mean_frame.append(float(mean_frame.square().mean()))
        counts += tokens.flatten().cpu().bincount(minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return {
        "psnr": -10 * math.log10(max(sum(squared) / len(squared), 1e-10)),
        "psnr_mean_frame": -10 * math.log10(max(sum(squared_mean_frame) / len(squared), 1e-10)),
        "l1": sum(l1) / len(l1),
        "codebook_use": float((counts > 0).double().mean()),
        "perplexity": float(torch.exp(-(shares * shares.log()).sum())),
    }


def with_noise(
    video: Float[Tensor, "B 3 T H W"], generators: Iterable[Generator], noise: float
) -> Float[Tensor, "B 3 T H W"]:
    """Adds noise to each clip, its deviation drawn too: up to `noise` grey levels.

    Never less than `LEAST_NOISE`: where all clips of a batch are of one colour, as black frames
    are, batch norms would divide by nothing, and gradients grow by up to 1e20.
    """
    noisy = video.clone()
    for clip, generator in zip(noisy, generators, strict=True):
        deviation = noise * torch.rand((), generator=generator)
        deviation = deviation.clamp_min(LEAST_NOISE) / 255
        clip += deviation * torch.randn(clip.shape, generator=generator)
    return noisy


def new_model(
    shape: VQGANConfig, config: ObjectiveConfig, weights: Mapping[str, Tensor] | None
) -> AdversarialVQGAN:
    """Makes a VQGAN with random weights or these, and new discriminators."""
    vqgan = VQGAN(shape)
    if weights is not None:
        vqgan.load_state_dict(weights)
    if config.decoder_only:
        vqgan.fix_tokens()
    return AdversarialVQGAN(vqgan, config.critics, width=config.discriminator_width)


def objective(
    config: ObjectiveConfig,
    lpips: Callable[[Tensor, Tensor], Tensor] | None,
    restart: Callable[[int], Generator],
    limits: tuple[float, float],
) -> Objective:
    """Makes the function that returns what a step is to reduce, and what to log of it.

    `restart` makes the generator that draws the codes of a step in place of unused ones; `limits`
    are those of the model's pixels, beyond which pixels are to be decoded where videos are cut off.
    """

    def loss(
        module: nn.Module, batch: Batch, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        noisy, video, frames = batch
        made, gan = module(
            noisy,
            video,
            frames,
            active=step >= config.discriminator_start,
            kind=config.gan_loss,
            restart_threshold=config.restart_threshold,
            generator=restart(step),
        )
        decoded = made.reconstruction.float()
        reconstruction = as_cut_off(decoded, video, limits, margin=MARGIN)
        l1 = reconstruction_loss(reconstruction, video, motion_weight=config.motion_weight)
        total = config.l1_weight * l1 + made.commitment_loss
        logged = {"l1": l1, "commitment": made.commitment_loss, "perplexity": made.perplexity}
        if config.change_weight:
            logged["change"] = change_loss(reconstruction, video)
            total = total + config.change_weight * logged["change"]
        if lpips is not None:
            shown = as_cut_off(decoded, video, limits)
            pictures = (drawn_frames(clips, frames) for clips in (shown, video))
            logged["lpips"] = lpips(*pictures).mean()
            total = total + config.perceptual_weight * logged["lpips"]
        for kind, losses in gan.items():
            total = total + config.gan_weights[kind] * (losses.generator + losses.discriminator)
            total = total + config.gan_feat_weight * losses.feature_matching
            logged |= {f"{kind}_{name}": value for name, value in losses._asdict().items()}
        return total, {name: value.detach() for name, value in logged.items()}

    return loss
