"""Discriminators and their losses, against values by hand."""

import math

import pytest
import torch
from torch import nn

from tests.golden_checks.vqgan_training import discriminator_state
from tokenizer import VQGAN, VQGANConfig
from tokenizer.adversarial import AdversarialVQGAN, gan_losses
from tokenizer.discriminator import Discriminator
from tokenizer.losses import (
    as_cut_off,
    discriminator_loss,
    drawn_frames,
    feature_matching_loss,
    generator_loss,
)


@pytest.mark.parametrize(("axes", "expected"), [(2, 2_766_529), (3, 11_057_857)])
def test_published_discriminators_have_as_many_parameters(axes, expected):
    assert sum(p.numel() for p in Discriminator(axes).parameters()) == expected


def test_channels_are_capped_and_strides_end_with_one():
    judge = Discriminator(2, width=128, num_layers=4)
    convs = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [128, 256, 512, 512, 512, 1]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 2, 1, 1]


def test_each_patch_is_scored_and_all_layers_but_the_last_are_seen():
    scores, features = Discriminator(3, width=4, num_layers=2)(torch.zeros(2, 3, 4, 8, 12))
    # An axis of n gets 4 of padding: floor(n / 2) + 1 with stride 2, n + 1 with stride 1.
    assert scores.shape == (2, 1, 4, 5, 6)
    assert [f.shape[1:] for f in features] == [(4, 3, 5, 7), (8, 2, 3, 4), (16, 3, 4, 5)]


def test_published_names_fit():
    judge = Discriminator(2, width=4, num_layers=2)
    state = {f"image_discriminator.{k}": v for k, v in judge.state_dict().items()}
    published = {k.replace("layers.", "model"): v for k, v in state.items()}
    assert "image_discriminator.model1.1.running_mean" in published
    found = discriminator_state({**published, "video_discriminator.model0.0.bias": 0}, "image")
    assert found.keys() == judge.state_dict().keys()


def test_losses_by_hand():
    real, fake = torch.tensor([[[3.0, 0.5]]]), torch.tensor([[[-2.0, 1.0]]])
    assert generator_loss(fake).item() == 0.5
    assert discriminator_loss(real, fake).item() == pytest.approx((0.25 + 1.0) / 2)
    nats = [math.log1p(math.exp(-3)), math.log1p(math.exp(-0.5))]
    nats += [math.log1p(math.exp(-2)), math.log1p(math.exp(1))]
    found = discriminator_loss(real, fake, kind="vanilla")
    assert found.item() == pytest.approx(sum(nats) / 4)


def test_features_are_matched_layer_by_layer_and_videos_are_left_alone():
    fake = [torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)]
    real = [torch.tensor([2.0, 5.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)]
    loss = feature_matching_loss(fake, real)
    loss.backward()
    assert loss.item() == 1.5 + 4
    assert fake[0].grad.tolist() == [-0.5, -0.5]
    assert real[0].grad is None


def test_each_clip_gives_the_frame_that_was_drawn_for_it():
    video = torch.arange(2 * 3 * 5).reshape(2, 1, 3, 1, 5).float()
    frames = drawn_frames(video, torch.tensor([2, 0]))
    assert torch.equal(frames[:, 0, 0], torch.stack([video[0, 0, 2, 0], video[1, 0, 0, 0]]))


def small_judge() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(2, width=4, num_layers=2)


def small_model(*kinds: str) -> AdversarialVQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(
        codebook_size=13, embedding_dim=5, width=4, downsample=(2, 4, 4), norm="batch"
    )
    return AdversarialVQGAN(VQGAN(config), kinds, width=4)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_each_side_learns_from_its_own_losses(kind: str, generator: torch.Generator) -> None:
    real, fake = (torch.rand(2, 3, 16, 16, generator=generator) - 0.5 for _ in "rf")
    fake.requires_grad_()
    losses = gan_losses(small_judge(), real, fake, kind=kind)
    expected = small_judge()
    scores, seen = expected(fake)
    real_scores, wanted = expected(real)
    fooled, matched = generator_loss(scores), feature_matching_loss(seen, wanted)
    (theirs,) = torch.autograd.grad(fooled + 3 * matched, fake)
    told_apart = discriminator_loss(real_scores, expected(fake.detach())[0], kind=kind)
    assert losses.generator.item() == fooled.item()
    assert losses.feature_matching.item() == matched.item()
    assert losses.discriminator.item() == told_apart.item()
    told_apart.backward()

    discriminator = small_judge()
    losses = gan_losses(discriminator, real, fake, kind=kind)
    (losses.generator + 3 * losses.feature_matching + losses.discriminator).backward()
    torch.testing.assert_close(fake.grad, theirs)
    for name, weight in discriminator.named_parameters():
        torch.testing.assert_close(weight.grad, expected.get_parameter(name).grad)


def test_frames_are_judged_one_a_clip_and_clips_whole(generator: torch.Generator) -> None:
    model = small_model("image", "video").train()
    video = torch.rand(2, 3, 4, 16, 16, generator=generator) - 0.5
    frames = torch.tensor([3, 0])
    video[:, :, :, :8] = 0.5  # Cut off, and decoded as whiter.
    with torch.no_grad():
        model.vqgan.decoder.head.bias.fill_(0.6)
    made, gan = model(video, video, frames, active=True)
    shown = as_cut_off(made.reconstruction, video, (-0.5, 0.5))
    assert not torch.equal(shown, made.reconstruction)
    assert gan.keys() == {"image", "video"}
    for name, clips in (
        ("image", [drawn_frames(clip, frames) for clip in (video, shown)]),
        ("video", [video, shown]),
    ):
        expected = gan_losses(model.discriminators[name], *clips, kind="hinge")
        assert [v.item() for v in gan[name]] == [v.item() for v in expected]


def test_until_they_judge_discriminators_stay_as_they_are(generator: torch.Generator) -> None:
    model = small_model("video").train()
    video = torch.rand(2, 3, 4, 16, 16, generator=generator) - 0.5
    before = {name: tensor.clone() for name, tensor in model.discriminators.state_dict().items()}
    made, gan = model(video, video, torch.tensor([0, 1]), active=False)
    assert [value.item() for value in gan["video"]] == [0, 0, 0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    (made.reconstruction.square().mean() + sum(gan["video"])).backward()
    assert all(weight.grad is not None for weight in model.discriminators.parameters())
    optimizer.step()
    for name, tensor in model.discriminators.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_discriminator_learns_to_tell_reconstructions_apart(generator: torch.Generator) -> None:
    model = small_model("image").train()
    model.vqgan.requires_grad_(False)
    video = torch.rand(4, 3, 4, 16, 16, generator=generator) - 0.5
    optimizer = torch.optim.Adam(model.discriminators.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        _, gan = model(video, video, torch.full((4,), step % 4), active=True)
        gan["image"].discriminator.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(gan["image"].discriminator.item())
    assert losses[0] == pytest.approx(1, abs=0.3)  # Scores around 0 are 1 away from both sides.
    assert losses[-1] < 0.3
