"""Files of other programs that are no checkpoints of training; those are in stages/test_imports."""

import copyreg
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.published.checkpoint import load_content, state_tensors
from tests.helpers.foreign_files import PicklerOf2017, write_of_2017


def test_parameters_pickled_as_in_2017_are_read(tmp_path: Path) -> None:
    state = {"features.0.weight": torch.randn(2, 3), "features.0.bias": torch.randn(2)}
    path = write_of_2017(tmp_path / "vgg16.pth", state)
    data = path.read_bytes()
    assert b"_rebuild_tensor\n" in data
    assert b"torch.nn.parameter\nParameter\n" in data
    found = state_tensors(path, load_content(path))
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (("a text",), (True, False, None)),
        ((), (1, 2)),
        ((), 7),
        ((), ("a", "b", "c", "d", "e")),
    ],
)
def test_parameters_of_something_else_are_refused(
    tmp_path: Path, arguments: tuple, state: Any
) -> None:
    class Hostile(PicklerOf2017):
        def reducer_override(self, value: Any) -> Any:
            if type(value) is nn.Parameter:
                return copyreg.__newobj__, (nn.Parameter, *arguments), state
            return NotImplemented

    path = write_of_2017(tmp_path / "bad.pth", {"a": torch.ones(2)}, Hostile)
    with pytest.raises(CheckpointError, match=r"bad\.pth is damaged, or was not written by torch"):
        load_content(path)
