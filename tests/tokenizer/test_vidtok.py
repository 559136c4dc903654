"""VidTok's network and what its config refuses."""

import copy
from typing import Any

import pytest
import torch

from tests.golden_checks.recipe import load_meta
from tests.helpers.cosmos_files import GOLDEN
from tokenizer.vidtok import VidTok, VidTokConfig
from tokenizer.vidtok.published import config_from_yaml

SMALL = VidTokConfig(levels=(5, 4, 3), width=3, multipliers=(1, 2, 2, 1), blocks=1)


@pytest.fixture
def model() -> VidTok:
    torch.manual_seed(0)
    return VidTok(SMALL).eval()


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_a_beginning_is_encoded_and_decoded_as_in_the_whole(model: VidTok, latent: int) -> None:
    video = torch.rand(1, 3, 9, 8, 24) - 0.5
    frames = 1 + 4 * (latent - 1)
    assert model.config.grid(frames, 8, 24) == (latent, 1, 3)
    with torch.no_grad():
        whole, begun = model.features(video), model.features(video[:, :, :frames])
    torch.testing.assert_close(begun, whole[:, :, :latent], atol=1e-5, rtol=1e-5)
    tokens = torch.randint(60, (1, 3, 1, 3))
    pictures, first = model.decode(tokens), model.decode(tokens[:, :latent])
    assert first.shape == (1, 3, frames, 8, 24)
    torch.testing.assert_close(first, pictures[:, :, :frames], atol=1e-5, rtol=1e-5)


def test_every_weight_has_a_say(model: VidTok) -> None:
    features = model.features(torch.rand(1, 3, 5, 8, 16) - 0.5)
    model.decoder(features).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_half_precision_works_on_a_cpu(model: VidTok) -> None:
    video = torch.rand(1, 3, 5, 8, 16) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        assert model.decode(model.encode(video)).shape == video.shape


def test_other_sizes_are_refused(model: VidTok) -> None:
    with pytest.raises(ValueError, match=r"a clip of 8 frames does not divide into tokens of 4"):
        model.encode(torch.zeros(1, 3, 8, 8, 8))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 1 << 40}, "width must be a whole number 1"),
        ({"blocks": 0}, "blocks must be a whole number"),
        ({"levels": ()}, "levels must be some numbers"),
        ({"levels": (8, 1)}, "levels must be up to 31 whole numbers"),
        ({"multipliers": (1,)}, "multipliers must be 2 to 8 numbers"),
        ({"still": 1}, "still must be true or false"),
        ({"linear": None}, "linear must be true or false"),
        ({"halved": (3,)}, r"halved must be of 0 … 2, each once, got \[3\]"),
        ({"doubled": (0, 1)}, r"doubled must be of 1 … 3, each once"),
        ({"halved": (1, 1)}, "halved must be of"),
        ({"halved": (1,)}, "time is halved after .* but doubled after"),
    ],
)
def test_senseless_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VidTokConfig(**fields)


def changed(path: str, value: Any) -> dict[str, Any]:
    """Returns a published YAML with another value somewhere below `model.params`."""
    tree: dict[str, Any] = copy.deepcopy(load_meta(GOLDEN / "vidtok_fsq_488")["config"])
    *names, last = path.split(".")
    inner = tree["model"]["params"]
    for name in names:
        inner = inner[name]
    inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder_config.target", "vidtok.modules.model_3dnoncausal.E", "only causal networks"),
        ("regularizer_config.target", "vidtok.KL", "its regularizer_config is 'vidtok.KL'"),
        ("regularizer_config.params.levels", "8", "no usable 'regularizer_config.params.levels'"),
        ("encoder_config", None, "it has no usable 'encoder_config': None"),
        ("encoder_config.params.norm_type", "groupnorm", "its norm_type is 'groupnorm', but only"),
        ("encoder_config.params.ch", True, "it has no usable 'ch': True"),
        ("encoder_config.params.z_channels", 4, "z_channels 4 do not fit its layers"),
        ("encoder_config.params.tempo_ds", [2], "time is halved after .2., but doubled after"),
        ("decoder_config.params", {"ch": 5}, "its decoder has other values than its encoder"),
    ],
)
def test_published_values_that_are_not_known_are_refused(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_yaml(changed(path, value))


def test_version_1_1_sees_the_first_frame_before_it_and_interpolates() -> None:
    target = "vidtok.modules.model_3dcausal_v1_1.EncoderCausal3DPadding"
    tree = changed("encoder_config.target", target)
    shape = tree["model"]["params"]["encoder_config"]["params"]
    for mode, linear in ((None, False), ("nearest", False), ("trilinear", True)):
        if mode:
            shape["interpolation_mode"] = mode
        config = config_from_yaml(tree)
        assert (config.still, config.linear) == (True, linear)
    shape["interpolation_mode"] = "cubic"
    with pytest.raises(ValueError, match=r"its interpolation_mode is 'cubic'; known: nearest"):
        config_from_yaml(tree)


def test_layers_in_time_are_where_the_yaml_says() -> None:
    tree = changed("encoder_config.params.tempo_ds", [0, 1, 2])
    shape = tree["model"]["params"]["encoder_config"]["params"]
    shape |= {"tempo_us": [1, 2, 3], "time_downsample_factor": 8}
    config = config_from_yaml(tree)
    assert (config.halved, config.doubled, config.downsample) == ((0, 1, 2), (1, 2, 3), (8, 8, 8))
