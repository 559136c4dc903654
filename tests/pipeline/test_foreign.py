"""Files of other programs that are no checkpoints of training; those are in stages/test_imports."""

from pathlib import Path

import torch

from pipeline.foreign import load_content, state_tensors
from tests.stages.foreign_files import write_torchvision


def test_parameters_pickled_as_in_2017_are_read(tmp_path: Path) -> None:
    state = {"features.0.weight": torch.randn(2, 3), "features.0.bias": torch.randn(2)}
    path = write_torchvision(tmp_path / "vgg16.pth", state)
    data = path.read_bytes()
    assert b"_rebuild_tensor\n" in data
    assert b"torch.nn.parameter\nParameter\n" in data
    found = state_tensors(path, load_content(path))
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert type(tensor) is torch.Tensor and not tensor.requires_grad
        assert torch.equal(tensor, state[name])
