"""metrics.json -> its numbers, if it is what `mebt evaluate` writes: it may be from anywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import build
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation.copying import CLOSEST, SHARES
from pipeline.evaluation.numbers import Evaluation
from pipeline.storage.files import printable, read_json

MAX_METRIC = 1e12
"""No number of ours comes near."""


@dataclass(frozen=True)
class _Counts:
    samples: int
    real: int


@dataclass(frozen=True)
class _Distances:
    samples: tuple[float, ...]
    real: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples or not self.real:
            raise ConfigError("there are none.")
        if not all(0 <= distance <= 1 for distance in (*self.samples, *self.real)):
            raise ConfigError("they must be in 0 … 1.")


@dataclass(frozen=True)
class _Pair:
    sample: int
    row: int
    video: str
    first_frame: int
    shift: int
    distance: float


@dataclass(frozen=True)
class _Copying:
    flagged: bool | None
    distances: _Distances
    pairs: tuple[_Pair, ...]
    chance: float | None = None
    near: float | None = None
    near_copies: _Counts | None = None
    windows_copied: int | None = None

    def __post_init__(self) -> None:
        if self.flagged is not None and not self.near_copies:
            raise ConfigError("'near_copies' is missing.")
        if len(self.pairs) > CLOSEST:
            raise ConfigError(f"there are {len(self.pairs):,} pairs, more than {CLOSEST}.")


def read_evaluation(path: Path, error: type[PipelineError]) -> dict[str, Any]:
    """Reads a metrics.json, for a card or a report to show. Raises `error` if it is none."""
    found = read_json(path, error, "finished evaluation")
    try:
        checked = build(Evaluation, found, where="evaluation")
        for part in ("metrics", "protocol"):
            if part not in found:
                raise ConfigError(f"evaluation: {part!r} is missing.")
        if any(abs(value) > MAX_METRIC for value in checked.metrics.values()):
            raise ConfigError(f"evaluation: a metric is larger than {MAX_METRIC:g}.")
        if not isinstance(checked.protocol.get("identities", {}), dict):
            raise ConfigError("evaluation: protocol.identities: expected dict.")
        if checked.copying:
            copying = build(_Copying, checked.copying, where="evaluation: copying")
            if copying.flagged is None and SHARES[0] not in checked.not_computed:
                raise ConfigError("evaluation: why copying was not judged is missing.")
    except ConfigError as problem:
        said = printable(str(problem))
        raise error(f"{path} is not what `mebt evaluate` writes: {said}") from None
    return found
