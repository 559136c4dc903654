"""LPIPS: what it promises, and which files it takes. Its numbers: golden/."""

import json

import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN
from tests.helpers.foreign_files import published_lpips
from tokenizer.perceptual import FRAMES_AT_ONCE, LPIPS, SMALLEST, load_lpips

SMALL_STAGES = ((3, 1), (4, 2), (5, 1), (6, 1), (7, 1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> LPIPS:
    """The same network with a handful of channels."""
    monkeypatch.setattr("tokenizer.perceptual.STAGES", SMALL_STAGES)
    torch.manual_seed(0)
    return LPIPS().eval().requires_grad_(False)


def refused(files: dict[str, dict[str, Tensor]]) -> str:
    with pytest.raises(ValueError) as error:
        load_lpips(files)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_equal_pictures_have_no_distance_and_noise_has_more(
    small: LPIPS, generator: torch.Generator
) -> None:
    x = torch.rand(2, 3, 19, 32, generator=generator) - 0.5
    noise = torch.randn(x.shape, generator=generator)
    assert small(x, x).tolist() == [0, 0]
    a_little, more = small(x, x + 0.05 * noise), small(x, x + 0.3 * noise)
    assert (a_little > 0).all() and (a_little < more).all()
    torch.testing.assert_close(small(x + 0.3 * noise, x), more)


def test_each_row_is_its_own_however_many_there_are(
    small: LPIPS, generator: torch.Generator
) -> None:
    count = 2 * FRAMES_AT_ONCE + 3
    x, y = (torch.rand(count, 3, 16, 16, generator=generator) - 0.5 for _ in "xy")
    found = small.frame_distances(x, y)
    assert found.shape == (count,)
    for row in (0, FRAMES_AT_ONCE, count - 1):
        torch.testing.assert_close(found[row : row + 1], small(x[row][None], y[row][None]))


def test_places_where_nothing_is_seen_have_a_gradient(small: LPIPS) -> None:
    """The lpips package divides zero by zero there."""
    with torch.no_grad():
        small.trunk[0].bias.fill_(-100)
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    small(x, x.detach() + 0.1).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_smallest_picture_leaves_one_place(small: LPIPS) -> None:
    x = torch.zeros(1, 3, SMALLEST, SMALLEST)
    assert small.features(x)[-1].shape == (1, 7, 1, 1)
    with pytest.raises(RuntimeError):
        small(x[..., 1:], x[..., 1:])


def test_weights_come_in_two_files_or_in_one(small: LPIPS) -> None:
    linear, trunk = published_lpips(small)
    whole = {k.replace("features.", "net.slice1."): v for k, v in (linear | trunk).items()}
    inside = {f"first_stage_model.perceptual_model.{k}": v for k, v in whole.items()}
    for files in (
        {"vgg.pth": linear, "vgg16.pth": trunk},
        {"vgg16.pth": trunk, "vgg.pth": linear},
        {"whole.pth": {**whole, "lins.0.model.1.weight": torch.zeros(1)}},
        {"mebt.ckpt": {**inside, "tok_emb.weight": torch.zeros(1)}},
    ):
        loaded = load_lpips(files)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for name, tensor in small.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_published_tokenizer_holds_all_of_it() -> None:
    listed = json.loads((GOLDEN / "full_size_keys" / "vqgan_128_488_batch.json").read_text())
    state = {name: torch.zeros(shape) for name, shape, _ in listed["state_dict"]}
    assert not any(load_lpips({"vqgan.ckpt": state}).state_dict()["linear.4"].flatten())


def test_files_that_do_not_fit_are_refused_with_what_to_give(small: LPIPS) -> None:
    linear, trunk = published_lpips(small)
    line = refused({"vgg.pth": linear})
    assert "vgg.pth: 12 of the 17 tensors of LPIPS are missing, the first is of its VGG16" in line
    assert "give vgg.pth of the lpips package" in line
    line = refused({"a": trunk})
    assert "a: 5 of the 17 tensors of LPIPS are missing, the first is of its linear layers" in line
    line = refused({"a": linear, "b": trunk, "c": {"conv1.weight": torch.zeros(1)}})
    assert line.startswith("c holds nothing of LPIPS: give vgg.pth")
    line = refused({"a": linear, "b": trunk | linear})
    assert line == "b holds 'lin0.model.1.weight', which was there before; give it once."
    line = refused({"a": linear, "b": trunk | {"features.33.weight": torch.zeros(1)}})
    assert "b holds 'features.33.weight', which LPIPS on VGG16 does not have" in line
    line = refused({"a": linear | {"lin1.model.1.weight": torch.zeros(1, 192, 1, 1)}, "b": trunk})
    assert "'lin1.model.1.weight' has shape [1, 192, 1, 1], but that of LPIPS on VGG16" in line
    for bad in (torch.full((3,), torch.nan), torch.zeros(3, dtype=torch.int64)):
        line = refused({"a": linear, "b": trunk | {"features.0.bias": bad}})
        assert line == "b: tensor 'features.0.bias' holds values that are no finite numbers."
