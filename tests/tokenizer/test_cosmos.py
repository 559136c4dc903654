"""Cosmos's network: patches, levels, causality, and what its config refuses."""

import dataclasses
from typing import Any

import pytest
import torch

from tokenizer.cosmos import Cosmos, CosmosConfig
from tokenizer.cosmos.layers import from_patches, to_patches
from tokenizer.cosmos.published import PARTS, config_from_state, resizing_names
from tokenizer.fsq import PaperFSQ
from tokenizer.ladder_names import our_name

SMALL = CosmosConfig(
    width=3, multipliers=(1, 2, 2), blocks=1, latent_width=5, downsample=(8, 16, 16)
)


@pytest.fixture
def model() -> Cosmos:
    torch.manual_seed(0)
    return Cosmos(SMALL).eval()


def test_patches_hold_means_and_differences_of_neighbours() -> None:
    video = torch.zeros(1, 1, 3, 2, 2)
    video[0, 0, 1:] = torch.tensor([[[1.0, 2], [3, 4]], [[5, 6], [7, 16]]])
    still, moving = to_patches(video + 1, 2).unbind(2)
    assert still.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]  # The first frame, twice.
    signs = {"t": [1, 1, 1, 1, -1, -1, -1, -1], "h": [1, 1, -1, -1] * 2, "w": [1, -1] * 4}
    flat = (video[0, 0, 1:] + 1).flatten()
    number = 0
    for t in (False, True):
        for h in (False, True):
            for w in (False, True):
                weights = torch.ones(8)
                for axis, used in (("t", t), ("h", h), ("w", w)):
                    weights *= torch.tensor(signs[axis]) if used else 1
                assert moving.flatten()[number] == (weights * flat).sum() / 8
                number += 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_become_the_video_again(size: int) -> None:
    video = torch.rand(2, 3, 9, 8, 16)
    patches = to_patches(video, size)
    assert patches.shape == (2, 3 * size**3, (8 + size) // size, 8 // size, 16 // size)
    torch.testing.assert_close(from_patches(patches, size), video)


def test_every_token_is_that_of_its_own_vector() -> None:
    fsq = PaperFSQ((8, 5, 4))
    tokens = torch.arange(160).reshape(1, 4, 5, 8)
    vectors = fsq.embed(tokens)
    assert vectors.amin((0, 2, 3, 4)).tolist() == [-1, -1, -1]
    assert vectors.amax((0, 2, 3, 4)).tolist() == [0.75, 1, 0.5]
    # What is rounded is tanh's output times half the levels, shifted where their number is even.
    reach = torch.tensor([7, 4, 3]).reshape(-1, 1, 1, 1) * 1.001 / 2
    shift = torch.tensor([0.5, 0, 0.5]).reshape(-1, 1, 1, 1)
    steps = vectors * torch.tensor([4, 2, 2]).reshape(-1, 1, 1, 1)
    features = torch.atanh((steps + shift) / reach) - torch.atanh(shift / reach)
    assert torch.equal(fsq.encode(features), tokens)
    assert fsq.encode(torch.full((1, 3, 1, 1, 1), 99.0)).item() == 159
    assert fsq.encode(torch.full((1, 3, 1, 1, 1), -99.0)).item() == 0


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_a_beginning_is_encoded_and_decoded_as_in_the_whole(model: Cosmos, latent: int) -> None:
    video = torch.rand(1, 3, 17, 16, 32) - 0.5
    frames = 1 + 8 * (latent - 1)
    assert model.config.grid(frames, 16, 32) == (latent, 1, 2)
    with torch.no_grad():
        whole, begun = model.features(video), model.features(video[:, :, :frames])
    torch.testing.assert_close(begun, whole[:, :, :latent], atol=1e-5, rtol=1e-5)
    tokens = torch.randint(64_000, (1, 3, 1, 2))
    pictures, first = model.decode(tokens), model.decode(tokens[:, :latent])
    assert first.shape == (1, 3, frames, 16, 32)
    torch.testing.assert_close(first, pictures[:, :, :frames], atol=1e-5, rtol=1e-5)


def test_every_weight_has_a_say(model: Cosmos) -> None:
    video = torch.rand(1, 3, 9, 16, 16) - 0.5
    features = model.features(video)
    model.decoder(model.from_embedding(features)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_half_precision_works_on_a_cpu(model: Cosmos) -> None:
    video = torch.rand(1, 3, 9, 16, 16) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.encode(video)
        assert model.decode(tokens).shape == video.shape


@pytest.mark.parametrize(
    ("frames", "side", "message"),
    [
        (8, 16, "a clip of 8 frames does not divide into tokens of 8; use 1 . a multiple of 8"),
        (9, 24, "a clip of 24 pixels high does not divide into tokens of 16"),
    ],
)
def test_other_sizes_are_refused(model: Cosmos, frames: int, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(1, 3, frames, side, side))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be a whole number 1"),
        ({"width": 1 << 40}, "width must be a whole number 1"),
        ({"blocks": True}, "blocks must be a whole number"),
        ({"levels": ()}, "levels must be some numbers"),
        ({"levels": (8, 1)}, "levels must be up to 31 whole numbers"),
        ({"multipliers": (1,) * 9}, "multipliers must be 1 to 8 numbers"),
        ({"patch": 3}, "patch must be 1, 2, 4, 8 or 16"),
        ({"mirrored": 1}, "mirrored must be true or false"),
        ({"downsample": (8, 16, 8)}, "height and width must be alike"),
        ({"downsample": (2, 8, 8)}, "and a patch at least"),
        ({"downsample": (8, 64, 64)}, "is not what 3 resolutions make"),
        ({"downsample": (32, 32, 32)}, "is not what 3 resolutions make"),
    ],
)
def test_senseless_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosmosConfig(**fields)


def published_names(config: CosmosConfig) -> set[str]:
    """All names of a published network of this shape, the layers that it never uses included."""
    every = dataclasses.replace(config, downsample=(8, 16, 16))
    layers = {name.replace("conv2", "conv1") for name in resizing_names(every)}
    return {name.replace("conv1", f"conv{n}") for name in layers for n in (1, 2, 3)}


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("downsample", [(4, 8, 8), (8, 8, 8), (8, 16, 16)])
def test_the_layers_that_are_used_tell_the_down_sampling(
    downsample: tuple[int, int, int], mirrored: bool
) -> None:
    config = dataclasses.replace(SMALL, downsample=downsample, mirrored=mirrored)
    state = {
        "encoder.conv_in.0.conv3d.weight": torch.zeros(3, 192, 1, 3, 3),
        "encoder.conv_out.0.conv3d.weight": torch.zeros(5, 6, 1, 3, 3),
        "quant_conv.conv3d.weight": torch.zeros(6, 5, 1, 1, 1),
        "decoder.conv_in.0.conv3d.weight": torch.zeros(6, 5, 1, 3, 3),
        **{
            f"encoder.down.{n}.block.0.conv1.0.conv3d.weight": torch.zeros(3 * wide, 1, 1, 3, 3)
            for n, wide in enumerate((1, 2, 2))
        },
        **dict.fromkeys(published_names(config), torch.zeros(1)),
    }
    found = config_from_state(state, resizing_names(config))
    # Where time is never doubled, both kinds of decoder are one.
    assert resizing_names(found) == resizing_names(config)
    assert found.downsample == downsample
    with pytest.raises(ValueError, match=r"nothing in it tells .* give --downsample"):
        config_from_state(state, state.keys())
    told = config_from_state(state, state.keys(), downsample=downsample)
    assert (told.downsample, told.mirrored) == (downsample, True)
    with pytest.raises(ValueError, match=r"--downsample 2 8 8 is none .* these: 4 4 4, 4 8 8, 4"):
        config_from_state(state, state.keys(), downsample=(2, 8, 8))
    with pytest.raises(ValueError, match=r"it down-samples by .* not by --downsample 4 4 4"):
        config_from_state(state, resizing_names(config), downsample=(4, 4, 4))
    with pytest.raises(ValueError, match="are those of none known"):
        config_from_state(
            state,
            resizing_names(config)
            - {
                "decoder.up.2.upsample.conv3.conv3d.bias",
                "decoder.up.1.upsample.conv3.conv3d.bias",
            },
        )


def test_decoders_count_resolutions_from_the_other_end() -> None:
    for theirs, ours in (
        ("decoder.up.2.block.1.norm1.norm.weight", "decoder.resolutions.0.blocks.1.norm1.weight"),
        ("decoder.up.1.upsample.conv1.conv3d.bias", "decoder.resolutions.1.resize.time.bias"),
        ("encoder.down.1.downsample.conv1.conv3d.bias", "encoder.resolutions.1.resize.space.bias"),
        ("encoder.mid.attn_1.1.norm.norm.bias", "encoder.middle.2.norm.bias"),
        ("encoder.mid.attn_1.0.q.conv3d.bias", "encoder.middle.1.query.bias"),
    ):
        assert our_name(theirs, PARTS, resolutions=3) == ours
