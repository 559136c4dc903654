"""Loads published tensors, renamed, into a model of ours; says which do not fit."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError

Model = TypeVar("Model", bound=nn.Module)


def assemble(
    path: Path | str,
    build: Callable[[], Model],
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    own: frozenset[str] = frozenset(),
) -> Model:
    """Builds a model around these very tensors, without copying one.

    `names` gives the published name of each of our names; `own` are tensors that only our model
    has, and stay without data. Raises CheckpointError if anything does not fit.
    """
    try:
        with torch.device("meta"):  # Hyper-parameters may claim any size.
            model = build()
    except (RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its hyper-parameters make no model: {reason}") from None
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in own}
    check_fit(path, tensors, expected, names)
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval()


def check_fit(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: Mapping[str, str],
) -> None:
    """Checks renamed tensors against those of our model. `names` is our name -> the published one.

    Raises CheckpointError with a line for each tensor that is missing, unknown, of another shape,
    not finite, or in the memory of another.
    """
    wrong = []
    owners: dict[int, str] = {}
    for name in sorted({*tensors, *expected}):
        ours, theirs = expected.get(name), tensors.get(name)
        if theirs is None and ours is not None:
            wrong.append(f"{name}: ours {list(ours.shape)}, theirs is missing")
        elif ours is None and theirs is not None:
            wrong.append(f"{names[name]}: theirs {list(theirs.shape)}, ours has no such tensor")
        elif ours is not None and theirs is not None:
            if ours.shape != theirs.shape:
                shapes = f"ours {list(ours.shape)}, theirs {list(theirs.shape)}"
                wrong.append(f"{name}: {shapes} ({names[name]})")
            elif theirs.is_floating_point() != ours.is_floating_point():
                wrong.append(f"{name}: ours {ours.dtype}, theirs {theirs.dtype} ({names[name]})")
            elif not torch.isfinite(theirs).all():
                wrong.append(f"{names[name]}: holds values that are not finite (NaN or infinite)")
            owner = owners.setdefault(theirs.untyped_storage().data_ptr(), name)
            if theirs.numel() and owner != name:
                wrong.append(f"{names[name]}: shares its memory with {names[owner]}")
    if wrong:
        count = "1 tensor does" if len(wrong) == 1 else f"{len(wrong)} tensors do"
        raise CheckpointError("\n  ".join([f"{path}: {count} not fit:", *wrong]))


def count_reasons(ignored: Mapping[str, str]) -> list[str]:
    """Sums up tensors that were left out: a line for each reason, with their number."""
    counts = Counter(ignored.values())
    return [
        f"{count} tensor{'s' if count > 1 else ''}: {reason}" for reason, count in counts.items()
    ]
