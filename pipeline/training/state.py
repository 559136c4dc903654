"""A run's state, to its checkpoints and back: weights, their average, the optimizer's state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.ranks import together
from pipeline.training.averages import WeightAverage
from pipeline.training.checkpoint import (
    CHECKPOINTS,
    load_last,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from pipeline.training.fsdp import gather, slice_like, slice_optimizer
from pipeline.training.log import FILE, LOG_CHECKSUM, Log, verified_prefix
from pipeline.training.task import LoopConfig, Task


def save_state(
    fabric: Fabric,
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    task: Task,
    config: LoopConfig,
    log: Log | None,
) -> None:
    """Writes a checkpoint, and what the run has made so far, from the first process."""
    weights = gather(fabric, model.state_dict())
    averages = gather(fabric, average.tensors)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averages.items()}
    tensors |= gather(fabric, optimizer_tensors(optimizer))
    # What 16-mixed scales its gradients by; empty for other precisions.
    values = {"scaler": fabric.strategy.precision.state_dict()}
    with together(fabric, f"save step {step}"):
        if log:
            values[LOG_CHECKSUM] = log.checksum()
            task.export(averages or weights, step)
            folder = out / CHECKPOINTS
            save_checkpoint(folder, step, tensors, values, keep=config.keep_checkpoints)


def restore_state(
    fabric: Fabric,
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    init: Path | None,
) -> tuple[int, Mapping[str, Any]]:
    """Puts back what the last checkpoint holds; returns its step, and its values if it is ours."""
    own = load_last(out / CHECKPOINTS)
    checkpoint = own or (load_last(init) if init else None)
    if checkpoint is None:
        return 0, {}
    if own and LOG_CHECKSUM in own.values:
        # In every process: none waits for one that refuses.
        verified_prefix(out / FILE, own.values[LOG_CHECKSUM])
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in checkpoint.tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    wanted = model.state_dict()
    for tensors in (parts["model"], parts["average"]):
        for name in tensors.keys() & wanted.keys():
            tensors[name] = slice_like(tensors[name], wanted[name])
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{out}: its checkpoint does not fit the model: {problem}") from None
    state = {name: x for name, x in checkpoint.tensors.items() if name.startswith("optimizer.")}
    restore_optimizer(optimizer, slice_optimizer(optimizer, state))
    if scaler := checkpoint.values.get("scaler"):
        fabric.strategy.precision.load_state_dict(scaler)
    device = next(model.parameters()).device
    if average.decay:  # Another run's average, not followed any more, would be all that is saved.
        average.tensors = {name: tensor.to(device) for name, tensor in parts["average"].items()}
    return checkpoint.step, own.values if own else {}
