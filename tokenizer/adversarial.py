"""A 3D VQGAN that learns together with discriminators of its frames and clips."""

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.func import functional_call

from tokenizer.discriminator import Discriminator
from tokenizer.losses import (
    as_cut_off,
    discriminator_loss,
    drawn_frames,
    feature_matching_loss,
    generator_loss,
)
from tokenizer.vqgan import VQGAN, VQGANOutput

AXES: dict[str, Literal[2, 3]] = {"image": 2, "video": 3}
"""Kinds of discriminators, and along how many axes each looks."""


class GanLosses(NamedTuple):
    """What the two sides of a GAN are to reduce: see `gan_losses`."""

    generator: Tensor
    """That the discriminator takes what is made for real; moves the VQGAN."""
    feature_matching: Tensor
    """That its layers see the same in both; moves the VQGAN."""
    discriminator: Tensor
    """That it tells both apart; moves the discriminator."""


def gan_losses(
    discriminator: Discriminator,
    real: Float[Tensor, "B C *sizes"],
    fake: Float[Tensor, "B C *sizes"],
    *,
    kind: Literal["hinge", "vanilla"],
) -> GanLosses:
    """Returns the three losses of a GAN; each reaches only the weights that are to reduce it."""
    frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    scores, seen = functional_call(discriminator, frozen, (fake,))
    real_scores, wanted = discriminator(real)
    fake_scores, _ = discriminator(fake.detach())
    return GanLosses(
        generator_loss(scores.float()),
        feature_matching_loss(seen, wanted),
        discriminator_loss(real_scores.float(), fake_scores.float(), kind=kind),
    )


class AdversarialVQGAN(nn.Module):
    """A VQGAN and the discriminators that it learns to fool, as one module for one optimizer.

    One pass gives the gradients of both sides (so one norm clips both). The published training runs
    the VQGAN a second time for the discriminators, and its codebook follows every batch twice.
    """

    def __init__(self, vqgan: VQGAN, kinds: Collection[str], *, width: int = 64) -> None:
        """`kinds` are of `AXES`; without any, there is only the VQGAN."""
        super().__init__()
        self.vqgan = vqgan
        self.discriminators = nn.ModuleDict(
            {
                kind: Discriminator(AXES[kind], in_channels=vqgan.config.in_channels, width=width)
                for kind in kinds
            }
        )

    def forward(
        self,
        seen: Float[Tensor, "B C T H W"],
        video: Float[Tensor, "B C T H W"],
        frames: Int[Tensor, " B"],
        *,
        active: bool,
        kind: Literal["hinge", "vanilla"] = "hinge",
        restart_threshold: float = 0.0,
        generator: Generator | None = None,
    ) -> tuple[VQGANOutput, dict[str, GanLosses]]:
        """Reconstructs `video` from `seen`; losses of discriminators that are not `active` are 0.

        Where the video is cut off, discriminators see what `as_cut_off` makes of it.
        `frames` says which frame of each clip the discriminator of frames sees. For the rest, see
        `VQGAN.forward`.
        """
        made = self.vqgan(seen, restart_threshold=restart_threshold, generator=generator)
        shown = as_cut_off(made.reconstruction, video, self.vqgan.config.pixel_limits)
        gan = {}
        for name, discriminator in self.discriminators.items():
            assert isinstance(discriminator, Discriminator)
            if not active:
                # DDP waits for a gradient of every parameter in every step.
                nothing = 0 * torch.stack([p.sum() for p in discriminator.parameters()]).sum()
                gan[name] = GanLosses(nothing.detach(), nothing.detach(), nothing)
                continue
            real, fake = video, shown
            if AXES[name] == 2:
                real, fake = drawn_frames(real, frames), drawn_frames(fake, frames)
            gan[name] = gan_losses(discriminator, real, fake, kind=kind)
        return made, gan
