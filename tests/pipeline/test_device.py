"""How tensors get to a device; there is no GPU, so only what is asked of one is seen."""

from unittest.mock import Mock

import torch

from pipeline.device import send


def test_a_gpu_copies_from_pinned_memory_while_the_cpu_goes_on() -> None:
    tensor, device = Mock(spec=torch.Tensor), torch.device("cuda", 1)
    sent = send(tensor, device)
    tensor.pin_memory.return_value.to.assert_called_once_with(device, non_blocking=True)
    assert sent is tensor.pin_memory.return_value.to.return_value


def test_elsewhere_a_tensor_goes_as_it_is() -> None:
    tensor = torch.arange(3)
    assert send(tensor, torch.device("cpu")) is tensor
    assert send(tensor, torch.device("meta")).is_meta
