"""I3D: its weights are refused in one clear line; its padding by hand. Its numbers: golden/."""

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.evaluation.i3d import I3D, I3D_FRAMES, Pool, i3d_input, load_i3d, pad_same


@pytest.fixture(scope="module")
def state():
    return I3D().state_dict()


def refused(path, state):
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        load_i3d(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_published_weights_load_with_or_without_a_wrapper_and_counters(state, tmp_path):
    bare = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(bare, tmp_path / "i3d.pt")
    model = load_i3d(tmp_path / "i3d.pt")
    assert len(state) == 344
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.Mixed_5c.b2b.bn.running_var, state["Mixed_5c.b2b.bn.running_var"])
    assert torch.equal(model.logits.conv3d.weight, state["logits.conv3d.weight"])


def test_weights_of_something_else_are_refused_with_what_to_give(tmp_path):
    line = refused(tmp_path / "a.pt", {"conv1.weight": torch.zeros(2)})
    assert "lacks 287 of 344 tensors" in line
    assert "'Conv3d_1a_7x7.bn.bias'; its 1 tensors begin with 'conv1.weight'" in line
    assert "give i3d_pretrained_400.pt" in line


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(state, tmp_path):
    rest = {name: tensor for name, tensor in state.items() if name != "logits.conv3d.bias"}
    assert "the first is 'logits.conv3d.bias'" in refused(tmp_path / "a.pt", rest)
    line = refused(tmp_path / "b.pt", {**state, "extra": torch.zeros(1)})
    assert "holds 'extra', which I3D does not have" in line
    line = refused(tmp_path / "c.pt", {**state, "logits.conv3d.bias": torch.zeros(600)})
    assert "'logits.conv3d.bias' has shape [600], but that of I3D has [400]" in line


@pytest.mark.parametrize("bad", [torch.full((400,), torch.nan), torch.zeros(400, dtype=torch.int)])
def test_values_that_are_no_numbers_are_refused(state, tmp_path, bad):
    line = refused(tmp_path / "a.pt", {**state, "logits.conv3d.bias": bad})
    assert "'logits.conv3d.bias' holds values that are no finite numbers" in line


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [
        (224, 7, 2, (2, 3)),
        (15, 3, 2, (1, 1)),
        (16, 3, 2, (0, 1)),
        (5, 2, 2, (0, 1)),
        (9, 3, 1, (1, 1)),
    ],
)
def test_padding_depends_on_the_size_and_the_odd_one_goes_to_the_end(size, kernel, stride, pads):
    padded = pad_same(torch.ones(1, 1, 1, 1, size), (1, 1, kernel), (1, 1, stride))
    line = padded.flatten().tolist()
    assert line == [0.0] * pads[0] + [1.0] * size + [0.0] * pads[1]


def test_the_border_of_a_pooling_counts_as_zeros():
    pooled = Pool((1, 3, 3), (1, 1, 1))(torch.full((1, 1, 1, 3, 3), -1.0))
    assert pooled[0, 0, 0].tolist() == [[0, 0, 0], [0, -1, 0], [0, 0, 0]]


def test_the_shortest_clip_leaves_two_moments_to_average():
    frames = [I3D_FRAMES, I3D_FRAMES - 1]
    for _ in range(3):
        frames = [-(-count // 2) for count in frames]
    assert frames == [2, 1]


def test_what_the_network_sees_is_not_antialiased():
    video = torch.zeros(1, 1, 448, 448, 3, dtype=torch.uint8)
    video[:, :, 2::4] = 255  # Rows 4 apart: halving takes the mean of rows 2k and 2k + 1.
    seen = i3d_input(video)[0, 0, 0, :, 0]
    assert seen.shape == (224,)
    assert seen[:4].tolist() == [-1, 0, -1, 0]
