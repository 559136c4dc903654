"""Reads the state of AdamW in a Lightning checkpoint, by names of parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.published.checkpoint import Foreign, plain, state_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARED_SETTINGS = {"betas": [0.9, 0.95], "eps": 1e-8, "amsgrad": False, "maximize": False}
"""What our AdamW has too; with other values it would go on differently."""
MAX_STEPS = 1 << 24
"""AdamW counts its steps in float32, which is exact up to here."""


@dataclass(frozen=True)
class AdamWState:
    """Moments and step of each parameter; one that never had a gradient is missing."""

    moments: dict[str, Tensor]
    """`NAME.exp_avg` and `NAME.exp_avg_sq`, by the published name of the parameter."""
    steps: dict[str, int]
    """Updates of each parameter."""
    learning_rate: Any
    weight_decay: Any
    """Of its first group. Both are only shown: a run takes them from its own params."""


def read_adamw(checkpoint: Foreign, groups: Sequence[Sequence[str]]) -> AdamWState:
    """Reads the one optimizer of a checkpoint, whose groups hold these parameters in this order.

    Raises CheckpointError, in one line, if it is no AdamW such as ours, its groups are others, or
    any entry of its state belongs to no parameter.
    """
    states = checkpoint.content.get("optimizer_states")
    if not isinstance(states, list) or len(states) != 1 or not isinstance(states[0], dict):
        raise CheckpointError(
            f"{checkpoint.path} holds no state of one optimizer; import it without --optimizer."
        )
    entries, settings = states[0].get("state"), plain(states[0].get("param_groups"))
    if not isinstance(entries, dict) or not entries or not isinstance(settings, list):
        raise CheckpointError(f"{checkpoint.path}: the state of its optimizer is empty.")
    if not 0 < checkpoint.step <= MAX_STEPS:
        raise CheckpointError(
            f"{checkpoint.path}: its global_step is {checkpoint.step}, not a count of steps."
        )
    names = _names(checkpoint, settings, groups)
    if unknown := [key for key in entries if key not in names]:
        raise CheckpointError(
            f"{checkpoint.path}: entry {unknown[0]!r} of its optimizer belongs to no parameter."
        )
    steps: dict[str, int] = {}
    moments: dict[str, Any] = {}
    for key, entry in entries.items():
        name = names[key]
        steps[name] = _steps(checkpoint, name, entry)
        moments |= {f"{name}.{kind}": entry[kind] for kind in MOMENTS}
    tensors = state_tensors(checkpoint.path, {"state_dict": moments})
    for name, tensor in tensors.items():
        if name.endswith("_sq") and (tensor < 0).any():
            raise CheckpointError(
                f"{checkpoint.path}: {name} is a mean of squares, but has negatives."
            )
    first = settings[0]
    return AdamWState(tensors, steps, first.get("lr"), first.get("weight_decay"))


def _names(
    checkpoint: Foreign, settings: Sequence[Any], groups: Sequence[Sequence[str]]
) -> dict[Any, str]:
    """Returns the parameter's name of each key of the optimizer's state."""
    lists = [group.get("params", []) if isinstance(group, dict) else [] for group in settings]
    sizes = [len(keys) if isinstance(keys, list) else 0 for keys in lists]
    if sizes != [len(group) for group in groups]:
        raise CheckpointError(
            f"{checkpoint.path}: the groups of its optimizer have {sizes} parameters, but those of "
            f"this model {[len(group) for group in groups]}."
        )
    for group in settings:
        for key, value in SHARED_SETTINGS.items():
            if (theirs := group.get(key, value)) != value:
                raise CheckpointError(
                    f"{checkpoint.path}: its optimizer has {key} {theirs!r}, but ours {value!r}; "
                    "import it without --optimizer."
                )
    keys = [key for group in lists for key in group]
    if not all(isinstance(key, int) for key in keys) or len(set(keys)) < len(keys):
        raise CheckpointError(f"{checkpoint.path}: its optimizer does not number its parameters.")
    return dict(zip(keys, (name for group in groups for name in group), strict=True))


def _steps(checkpoint: Foreign, name: str, entry: Any) -> int:
    """Checks what one parameter's entry holds; returns its number of updates."""
    if not isinstance(entry, Mapping) or set(entry) != {"step", *MOMENTS}:
        held = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise CheckpointError(
            f"{checkpoint.path}: of {name} its optimizer holds {held}, but AdamW holds step, "
            f"{' and '.join(MOMENTS)}."
        )
    step = entry["step"]
    if isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex():
        step = step.item()
    if not isinstance(step, int | float) or step != step // 1 or not 0 <= step <= MAX_STEPS:
        raise CheckpointError(
            f"{checkpoint.path}: the optimizer's step of {name} is {plain(step)!r}, not a count."
        )
    return int(step)
