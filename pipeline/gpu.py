"""Help for GPUs that commands share: transfers that nobody waits for, and compiled layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import ConfigError


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU's to the device: to a GPU from pinned memory, unwaited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def compiling(enabled: bool, key: str) -> Iterator[None]:
    """Says in a line why torch.compile, if `enabled` by the value `key`, does not work here.

    Raises ConfigError in place of what torch raises when it compiles, the first time code is run.
    """
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # Slow to import, and seldom needed.

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(f"torch.compile does not work here: {reason} Set {key}=false.") from error
