"""The 3D VQGAN: shapes, the codebook in training, the losses, and names of published tensors."""

import dataclasses
import math

import pytest
import torch
from torch import Generator, nn

from tokenizer import VQGAN, VQGANConfig
from tokenizer.adversarial import AdversarialVQGAN
from tokenizer.codebook import Codebook, pick_rows
from tokenizer.losses import (
    MARGIN,
    as_cut_off,
    change_loss,
    grey_levels,
    motion_weights,
    reconstruction_loss,
)
from tokenizer.objective import ObjectiveConfig, objective
from tokenizer.published import convert_state

K, DIM = 7, 3


def make_config(**changes: object) -> VQGANConfig:
    fields = {"codebook_size": K, "embedding_dim": DIM, "width": 4, "norm": "batch", **changes}
    return VQGANConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("downsample", [(2, 4, 4), (4, 2, 8), (1, 2, 1), (8, 8, 2)])
@pytest.mark.parametrize("padding", ["replicate", "zeros", "reflect", "circular"])
def test_any_down_sampling_gives_its_grid_and_back(
    downsample: tuple[int, int, int], padding: str
) -> None:
    config = make_config(downsample=downsample, padding=padding)
    model = VQGAN(config).eval()
    grid = (3, 5, 4)
    t, h, w = (cells * factor for cells, factor in zip(grid, downsample, strict=True))
    video = torch.rand(2, 3, t, h, w) - 0.5
    tokens = model.encode(video)
    assert tokens.shape == (2, *grid)
    assert config.grid(t, h, w) == grid
    assert tokens.min() >= 0
    assert tokens.max() < K
    assert model.decode(tokens).shape == video.shape


def test_padding_reaches_the_encoder_only() -> None:
    torch.manual_seed(0)
    models = []
    for padding in ("replicate", "zeros"):
        model = VQGAN(make_config(downsample=(2, 2, 2), padding=padding)).eval()
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    video, tokens = torch.rand(1, 3, 4, 8, 8), torch.randint(K, (1, 2, 4, 4))
    one, other = (model.features(video) for model in models)
    assert not torch.equal(one, other)
    assert torch.equal(models[0].decode(tokens), models[1].decode(tokens))


def test_a_local_token_sees_its_own_block_and_the_blocks_beside_it() -> None:
    torch.manual_seed(0)
    config = make_config(downsample=(4, 8, 8), norm="batch")
    changed = {}
    for local in (False, True):
        model = VQGAN(dataclasses.replace(config, local=local)).eval()
        video = torch.rand(1, 3, 28, 56, 56) - 0.5
        other = video.clone()
        other[:, :, 12:16, 24:32, 24:32] *= -1  # The block of token (3, 3, 3).
        with torch.no_grad():
            differ = (model.features(video) - model.features(other)).abs().amax(1)[0] > 1e-6
        reach = [
            differ.any(2).any(1).nonzero(),
            differ.any(2).any(0).nonzero(),
            differ.any(1).any(0).nonzero(),
        ]
        changed[local] = [(int(places.min()), int(places.max())) for places in reach]
    assert changed == {False: [(0, 6), (0, 6), (0, 6)], True: [(2, 4), (2, 4), (2, 4)]}


def test_a_window_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = VQGAN(make_config(downsample=(2, 4, 4), norm="group", width=16)).eval()
    video = torch.rand(3, 3, 4, 8, 8) - 0.5
    together = model.encode(video)
    for row in range(3):
        assert torch.equal(model.encode(video[row : row + 1])[0], together[row])


@pytest.mark.parametrize("decoder_norm", [None, "layer"])
def test_a_decoder_makes_in_training_what_it_makes_later_only_by_layer_norms(
    decoder_norm: str | None,
) -> None:
    torch.manual_seed(0)
    model = VQGAN(make_config(downsample=(2, 4, 4), decoder_norm=decoder_norm))
    tokens = torch.randint(K, (2, 2, 2, 2))
    learned = model.decode(tokens)
    model.eval()
    later = torch.cat([model.decode(clip) for clip in tokens.split(1)])
    assert torch.allclose(later, learned, atol=1e-5) == (decoder_norm == "layer")
    norms = {type(m).__name__ for m in model.encoder.modules() if "Norm" in type(m).__name__}
    assert norms == {"BatchNorm3d"}


@pytest.mark.parametrize(
    ("norm", "padding"),
    [
        *[("batch", "replicate"), ("group", "zeros"), ("batch", "reflect"), ("batch", "circular")],
        ("layer", "zeros"),
    ],
)
def test_what_is_only_computed_is_computed_faster_and_the_same(norm: str, padding: str) -> None:
    config = VQGANConfig(
        codebook_size=11, embedding_dim=5, width=16, downsample=(2, 4, 2), norm=norm,
        padding=padding,
    )  # type: ignore[arg-type]  # fmt: skip
    model = VQGAN(config).eval()
    video = torch.rand(2, 3, 8, 16, 6) - 0.5
    tokens = torch.randint(11, (2, 4, 4, 3))
    embeddings = model.codebook.embeddings[tokens].movedim(-1, 1)
    features = model.features(video)
    pictures = model.decoder(model.from_embedding(embeddings))
    assert features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model.features(video), features.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(tokens), pictures.detach(), atol=1e-5, rtol=1e-5)
        alone = torch.cat([model.decode(clip) for clip in tokens.split(1)])
        torch.testing.assert_close(alone, pictures.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 8, 8), "3 frames does not divide into tokens of 2"),
        ((4, 6, 8), "6 pixels high does not divide into tokens of 4"),
        ((4, 8, 0), "0 pixels wide does not divide"),
    ],
)
def test_clips_that_do_not_divide_are_refused(size: tuple[int, int, int], message: str) -> None:
    model = VQGAN(make_config(downsample=(2, 4, 4))).eval()
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(1, 3, *size))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downsample": (3, 4, 4)}, "powers of two"),
        ({"downsample": (1, 1, 1)}, "at least one axis"),
        ({"norm": "group", "width": 8}, "multiple of 16"),
        ({"downsample": (2.0, 4, 4)}, "powers of two"),
        ({"downsample": (4, 4)}, "powers of two"),
        ({"downsample": (2**40, 4, 4)}, "up to 256"),
        ({"codebook_size": 0}, "codebook_size must be a whole number 1"),
        ({"codebook_size": 2**31 + 1}, "codebook_size must be a whole number 1"),
        ({"width": 4.0}, "width must be a whole number"),
        ({"width": 1e9}, "width must be a whole number"),
        ({"embedding_dim": True}, "embedding_dim must be a whole number"),
        ({"decoder_norm": "foo"}, "unknown decoder_norm 'foo'; choose from group, batch, layer"),
        ({"norm": "batch", "decoder_norm": "group", "width": 8}, "multiple of 16"),
        ({"norm": "foo"}, "unknown norm 'foo'; choose from group, batch, layer"),
        ({"padding": ["zeros"]}, "unknown padding"),
        ({"in_channels": 1}, "in_channels must be 3"),
        ({"pixel_range": (235, 16)}, r"two grey levels 0 … 255, the lower one first, or \[\]"),
        ({"pixel_range": (16,)}, "pixel_range must be two grey levels"),
        ({"pixel_range": (0, 256)}, "pixel_range must be two grey levels"),
        ({"pixel_range": (0.0, 1.0)}, "pixel_range must be two grey levels"),
        ({"pixel_range": (False, True)}, "pixel_range must be two grey levels"),
    ],
)
def test_impossible_configs_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_the_nearest_vector_is_found_in_float32_whatever_the_convolutions_compute_in() -> None:
    torch.manual_seed(0)
    codebook = Codebook(4096, 16)
    rows = torch.randn(512, 16)
    exact = codebook.nearest(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.nearest(rows), exact)


def test_half_precision_is_used_by_every_convolution_that_it_is_asked_of() -> None:
    torch.manual_seed(0)
    model = VQGAN(make_config(width=8, downsample=(2, 4, 4))).eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    video = torch.rand(1, 3, 4, 16, 16) - 0.5  # A single clip takes a way of its own in float32.
    with torch.inference_mode():
        tokens = model.encode(video)
        exact = model.decode(tokens)
        assert set(seen) == {torch.float32}
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model.encode(video)
            near = model.decode(tokens)
    assert set(seen) == {torch.bfloat16}
    torch.testing.assert_close(near.float(), exact, atol=0.05, rtol=0.05)


def test_the_nearest_vector_is_chosen_and_of_two_the_first() -> None:
    codebook = Codebook(4, 2)
    codebook.initialize(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]))
    rows = torch.tensor([[0.1, 0.1], [1.9, 0.2], [0.4, 1.7]])
    assert codebook.nearest(rows).tolist() == [0, 1, 2]


def test_the_codebook_moves_towards_what_chose_it_once_a_step() -> None:
    codebook = Codebook(2, 1)
    codebook.initialize(torch.tensor([[0.0], [10.0]]))
    codebook.train()
    codebook(torch.tensor([1.0, 1.0, 1.0, 9.0]).reshape(1, 1, 4, 1, 1))
    # By hand: counts 0.99 + 0.01 * (3, 1), sums 0.99 * (0, 10) + 0.01 * (3, 9).
    torch.testing.assert_close(codebook.counts, torch.tensor([1.02, 1.0]))
    torch.testing.assert_close(codebook.sums[:, 0], torch.tensor([0.03, 9.99]))
    expected = torch.tensor([[0.03 / 1.02], [9.99]])
    torch.testing.assert_close(codebook.embeddings, expected, rtol=1e-5, atol=1e-5)


def test_evaluation_leaves_the_codebook_alone() -> None:
    model = VQGAN(make_config(downsample=(2, 4, 4))).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.rand(2, 3, 4, 8, 8) - 0.5, restart_threshold=1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_dead_vectors_are_replaced_and_stay(generator: torch.Generator) -> None:
    codebook = Codebook(K, DIM)
    codebook.initialize(torch.randn(K, DIM, generator=generator))
    codebook.counts[2] = 0.05
    rows = torch.full((K, DIM), 5.0)
    assert codebook.restart(rows, threshold=0.1) == 1
    assert codebook.embeddings[2].tolist() == [5.0] * DIM
    codebook.update(torch.zeros(1, DIM), torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(codebook.embeddings[2], torch.full((DIM,), 5.0), rtol=1e-5, atol=0)


def test_restarts_are_off_at_threshold_zero(generator: torch.Generator) -> None:
    codebook = Codebook(K, DIM).train()
    codebook.initialize(torch.randn(K, DIM, generator=generator))
    codebook.counts[2] = 0.0
    features = torch.randn(1, DIM, 2, 2, 2, generator=generator) + 100
    chosen = codebook(features, generator=generator).tokens.unique()
    assert 2 not in chosen
    assert float(codebook.counts[2]) == 0
    codebook(features, restart_threshold=0.1, generator=generator)
    assert float(codebook.counts[2]) == 1


def test_gradients_pass_straight_through_to_the_encoder() -> None:
    torch.manual_seed(0)
    model = VQGAN(make_config(downsample=(2, 4, 4))).train()
    video = torch.rand(2, 3, 4, 8, 8) - 0.5
    made = model(video)
    (reconstruction_loss(made.reconstruction, video) + made.commitment_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.encoder.stem.weight.grad.abs().sum() > 0


def test_perplexity_counts_the_vectors_in_use() -> None:
    codebook = Codebook(4, 1).eval()
    codebook.initialize(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    rows = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 4, 1, 1)
    assert float(codebook(rows).perplexity) == pytest.approx(2.0)


def test_picked_rows_are_different_ones_and_copies_are_near(generator: torch.Generator) -> None:
    rows = torch.arange(30.0).reshape(10, 3)
    picked = pick_rows(rows, 6, generator=generator)
    assert len({tuple(row) for row in picked.tolist()}) == 6
    assert all(row in rows.tolist() for row in picked.tolist())
    many = pick_rows(rows, 25, generator=generator)
    assert many.shape == (25, 3)
    assert torch.cdist(many, rows).min(1).values.max() < 0.1


def test_rows_are_picked_by_their_weights(generator: torch.Generator) -> None:
    rows, weights = torch.arange(1000.0)[:, None], torch.ones(1000)
    weights[:500], weights[500:510] = 0, 1e6
    picked = pick_rows(rows, 10, weights=weights, generator=generator).flatten()
    assert sorted(picked.tolist()) == list(range(500, 510))
    assert pick_rows(rows[:5], 12, weights=weights[:5] + 1, generator=generator).shape == (12, 1)


def test_dead_vectors_are_replaced_by_what_is_badly_kept(generator: torch.Generator) -> None:
    codebook = Codebook(K, DIM).train()
    codebook.initialize(torch.randn(K, DIM, generator=generator))
    codebook.counts[2:] = 0.0
    features = 0.01 * torch.randn(1, DIM, 10, 10, 10, generator=generator)
    features[:, :, 0] += 100 + torch.randn(1, DIM, 10, 10, generator=generator)  # One in ten.
    codebook(features, restart_threshold=0.1, generator=generator)
    assert int((codebook.embeddings[2:, 0] > 50).sum()) >= K - 4


def test_moving_pixels_weigh_more_and_the_mean_weight_is_one() -> None:
    video = torch.zeros(1, 3, 4, 2, 2)
    video[:, :, ::2, 0, 0] = 0.5  # One pixel flickers, three stand still.
    weights = motion_weights(video, 3.0)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights[..., 1, 1].mean()) == pytest.approx(1 / 4)
    assert float(weights[..., 0, 0].mean()) == pytest.approx((1 + 3 * 4) / 4)
    off = video + torch.tensor([0.1, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 2, 2)
    plain = reconstruction_loss(off, video)
    assert float(plain) == pytest.approx(0.1 / 4)
    weighted = reconstruction_loss(off, video, motion_weight=3.0)
    assert float(weighted) == pytest.approx(0.1 / 4 * 13 / 4)


@pytest.mark.slow
def test_a_small_tokenizer_learns_one_clip() -> None:
    torch.manual_seed(0)
    model = VQGAN(make_config(downsample=(2, 4, 4), width=8)).train()
    rows = torch.linspace(-0.4, 0.4, 8)
    video = (rows[:, None] * rows[None, :] * 2).expand(1, 3, 4, 8, 8) + rows[::2, None, None] / 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        made = model(video)
        loss = reconstruction_loss(made.reconstruction, video)
        (loss + made.commitment_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert math.fsum(losses[-5:]) < 0.4 * math.fsum(losses[:5])


def test_published_names_are_all_accounted_for() -> None:
    one = torch.zeros(1)
    ours, ignored = convert_state(
        {
            "encoder.conv_blocks.1.res.conv2.conv.weight": one,
            "codebook.N": one,
            "image_discriminator.model0.0.weight": one,
            "perceptual_model.lin0.model.1.weight": one,
        }
    )
    assert set(ours) == {"encoder.stages.1.1.conv2.weight", "codebook.counts"}
    assert set(ignored) == {
        "image_discriminator.model0.0.weight",
        "perceptual_model.lin0.model.1.weight",
    }
    with pytest.raises(ValueError, match=r"unknown tensor 'encoder\.surprise'"):
        convert_state({"encoder.surprise": one})


def test_ground_that_flickers_costs_and_ground_that_is_off_does_not() -> None:
    video = torch.zeros(1, 3, 4, 2, 2)
    flicker = video.clone()
    flicker[:, :, 1::2] = 0.1
    assert float(change_loss(video + 0.1, video)) == 0
    assert float(change_loss(flicker, video)) == pytest.approx(0.1)
    assert float(change_loss(video[:, :, :1], video[:, :, :1] + 1)) == 0


def test_beyond_the_range_is_right_where_the_video_is_cut_off_and_nowhere_else() -> None:
    limits = make_config(pixel_range=(51, 204)).pixel_limits
    assert limits == pytest.approx((-0.3, 0.3))
    video = torch.tensor([-0.3, -0.3, -0.3, 0.3, 0.3, 0.3, 0.0, 0.0, 0.3])
    made = torch.tensor([-0.4, -0.31, -0.2, 0.4, 0.31, 0.2, -0.4, 0.4, -0.4], requires_grad=True)
    shape = (1, 1, 1, 1, 9)
    shown = as_cut_off(made.view(shape), video.view(shape), limits).flatten()
    assert shown.tolist() == pytest.approx([-0.3, -0.3, -0.2, 0.3, 0.3, 0.2, -0.4, 0.4, -0.4])
    asked = as_cut_off(made.view(shape), video.view(shape), limits, margin=MARGIN).flatten()
    costs = (asked - video).abs()
    beside = MARGIN - 0.01
    assert costs.tolist() == pytest.approx(
        [0, beside, 0.1 + MARGIN, 0, beside, 0.1 + MARGIN, 0.4, 0.4, 0.7 + MARGIN], abs=1e-6
    )
    costs.sum().backward()
    assert made.grad.tolist() == [0, 1, 1, 0, -1, -1, -1, 1, -1]


def test_grey_levels_are_counted_to_the_last() -> None:
    video = torch.tensor([-0.5, -0.5, 0.5, 128 / 255 - 0.5, 0.7, -0.9]).view(1, 1, 1, 2, 3)
    counts = grey_levels(video)
    assert counts.shape == (256,)
    assert {level: int(counts[level]) for level in counts.nonzero().flatten().tolist()} == {
        0: 3,
        128: 1,
        255: 2,
    }


def test_a_tokenizer_of_a_range_decodes_to_nothing_else() -> None:
    """The same weights without one do: white is then 255, and black 0."""
    torch.manual_seed(0)
    whole = VQGAN(make_config()).eval()
    cut = VQGAN(make_config(pixel_range=(120, 130))).eval()
    cut.load_state_dict(whole.state_dict())
    tokens = torch.randint(whole.config.codebook_size, (1, 2, 4, 4))
    video, low, high = whole.decode(tokens), 120 / 255 - 0.5, 130 / 255 - 0.5
    assert float(video.min()) < low < high < float(video.max())
    assert torch.equal(cut.decode(tokens), video.clamp(low, high))


def test_white_that_is_decoded_as_whiter_costs_nothing_and_grey_does() -> None:
    torch.manual_seed(0)
    shape = make_config(decoder_norm="layer", downsample=(2, 4, 4))
    module = AdversarialVQGAN(VQGAN(shape), ())
    head = module.vqgan.decoder.head
    learns = objective(
        ObjectiveConfig(restart_threshold=0.0), None, lambda step: Generator(), shape.pixel_limits
    )
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(0.7)
    frames = torch.zeros(1, dtype=torch.int64)
    for grey, cost in ((0.5, 0.0), (0.4, 0.3)):
        video = torch.full((1, 3, 4, 8, 8), grey)
        loss, logged = learns(module, (video, video, frames), 0)
        assert logged["l1"].item() == pytest.approx(cost)
        head.bias.grad = None
        loss.backward()
        assert head.bias.grad.abs().sum().item() == pytest.approx(float(bool(cost)))
