"""What a tokenizer learns from: each loss by hand, noise, and which discriminators there are."""

import pytest
import torch
from torch import Generator, Tensor, nn

from tokenizer import VQGAN, VQGANConfig, VQGANOutput
from tokenizer.adversarial import GanLosses
from tokenizer.losses import MARGIN
from tokenizer.objective import ObjectiveConfig, new_model, objective, with_noise


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


class Recorded(nn.Module):
    """Stands for the model: reconstructs grey, has losses of its own, keeps what it is told."""

    def forward(self, seen: Tensor, video: Tensor, frames: Tensor, **how):
        self.how = how
        commitment, zero = torch.tensor(1e-3), torch.zeros(())
        made = VQGANOutput(torch.zeros_like(video), commitment, zero, zero)
        fooled, matched, told_apart = (torch.tensor(value) for value in (1e1, 1e3, 1e5))
        return made, {
            "image": GanLosses(fooled, matched, told_apart),
            "video": GanLosses(2 * fooled, 2 * matched, 2 * told_apart),
        }


def test_the_loss_by_hand() -> None:
    config = ObjectiveConfig(
        l1_weight=3.0,
        perceptual_weight=5.0,
        image_gan_weight=0.5,
        video_gan_weight=2.0,
        gan_feat_weight=4.0,
        gan_loss="vanilla",
        discriminator_start=7,
    )
    video, frames = torch.full((2, 3, 4, 8, 8), 0.25), torch.tensor([1, 3])
    video[0, :, 1], video[1, :, 3] = 0.5, 0.125
    model = Recorded()
    loss = objective(config, lambda x, y: (y - x).mean((1, 2, 3)), generator, (-1.0, 1.0))
    total, logged = loss(model, (video, video, frames), 6)
    assert not model.how["active"]
    l1 = (6 * 0.25 + 0.5 + 0.125) / 8
    perceptual = (0.5 + 0.125) / 2  # Of the frames that were drawn.
    assert logged["l1"].item() == pytest.approx(l1)
    assert logged["lpips"].item() == pytest.approx(perceptual)
    expected = 3 * l1 + 1e-3 + 5 * perceptual
    expected += 0.5 * (1e1 + 1e5) + 2 * (2e1 + 2e5) + 4 * (1e3 + 2e3)
    assert total.item() == pytest.approx(expected, rel=1e-7)
    loss(model, (video, video, frames), 7)
    assert model.how["active"]
    assert model.how["kind"] == "vanilla"
    assert model.how["restart_threshold"] == 0.1


def test_the_margin_is_asked_of_pixels_and_not_of_what_looks_at_pictures() -> None:
    """The limit here is the grey of all reconstructions: at it, beyond it by nothing."""
    config = ObjectiveConfig(perceptual_weight=1.0, change_weight=1.0)
    video, frames = torch.zeros(1, 3, 4, 8, 8), torch.tensor([2])
    video[:, :, 1:, :4] = -0.1
    looked_at = []

    def look(shown: Tensor, wanted: Tensor) -> Tensor:
        looked_at.extend([shown, wanted])
        return (shown - wanted).abs().mean((1, 2, 3))

    _, logged = objective(config, look, generator, (-0.5, 0.0))(
        Recorded(), (video, video, frames), 0
    )
    at_limit = 5 / 8  # Of all pixels: the first of four frames, and half of each other one.
    assert logged["l1"].item() == pytest.approx(at_limit * MARGIN + 3 / 8 * 0.1)
    assert logged["change"].item() == pytest.approx((0.1 + MARGIN) / 6)
    assert logged["lpips"].item() == pytest.approx(0.05)
    assert torch.equal(looked_at[0], torch.zeros(1, 3, 8, 8))
    assert torch.equal(looked_at[1], video[:, :, 2])


def test_each_clip_of_a_batch_draws_a_noise_of_its_own() -> None:
    video = torch.zeros(6, 3, 4, 8, 8)
    noisy = with_noise(video, map(generator, range(6)), 4.0)
    deviations = 255 * noisy.std((1, 2, 3, 4))
    assert len(set(deviations.tolist())) == 6
    assert 0 < float(deviations.min()) < float(deviations.max()) < 4.5
    # Whatever process and micro-batch a clip is in.
    assert torch.equal(with_noise(video[2:5], map(generator, range(2, 5)), 4.0), noisy[2:5])
    assert not torch.equal(with_noise(video, map(generator, range(6, 12)), 4.0), noisy)
    assert torch.equal(video, torch.zeros_like(video))


@pytest.mark.slow
@pytest.mark.parametrize("colour", [-0.5, 0.0, 0.43])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_of_a_batch_of_one_colour_are_those_of_any_other(
    colour: float, precision: torch.dtype
) -> None:
    """Ten batch norms, one after the other, would each make them a few hundred times as large."""
    torch.manual_seed(0)
    video = torch.full((2, 3, 8, 32, 32), colour)

    def largest(noisy: Tensor) -> float:
        model = VQGAN(VQGANConfig(codebook_size=16, embedding_dim=4, width=16, norm="batch"))
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            made = model(noisy)
        ((made.reconstruction - video).abs().mean() + made.commitment_loss).backward()
        return max(float(x.grad.abs().max()) for x in model.parameters() if x.grad is not None)

    assert largest(with_noise(video, map(generator, range(2)), 0.0)) < 3
    assert largest(video) > 1e5


@pytest.mark.parametrize(
    ("weights", "kinds"),
    [({}, []), ({"image_gan_weight": 0.1}, ["image"]), ({"video_gan_weight": 1.0}, ["video"])],
)
def test_discriminators_are_those_that_weigh(weights: dict, kinds: list[str]) -> None:
    shape = VQGANConfig(codebook_size=5, embedding_dim=2, width=2, norm="batch")
    config = ObjectiveConfig(discriminator_width=6, **weights)
    model = new_model(shape, config, None)
    assert list(model.discriminators) == kinds
    for discriminator in model.discriminators.values():
        assert discriminator.layers[0][0].out_channels == 6
