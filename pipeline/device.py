"""Asynchronous copies to a GPU, and torch.compile with one clear error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import ConfigError

VARIANTS = 64
"""Most times that one function is compiled: again for each size that is 1 in place of many, say.
Beyond its own 8, torch would warn and give up."""


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU's to the device: to a GPU from pinned memory, unwaited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def compiling(enabled: bool, key: str) -> Iterator[None]:
    """Lets what runs inside be compiled as often as it needs, if `enabled` by the value `key`.

    Raises ConfigError in place of what torch raises when it compiles, the first time code is run.
    """
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # Slow to import, and seldom needed.

    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(f"torch.compile does not work here: {reason} Set {key}=false.") from error
