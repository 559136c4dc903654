"""A run's folder: made, locked, and told from that of another run."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from pipeline.checkpoint import last_step
from pipeline.config import as_dict
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.files import contents, lock, read_json, remove, write_json
from pipeline.training import FREE_KEYS, LoopConfig


def prepare_run(
    out: Path, config: LoopConfig, made_from: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Makes the run's folder, or checks that the one there is of the same run.

    Raises ConfigError, naming the differences, unless `overwrite` lets it start afresh. A folder
    without the record of a run is never touched.
    """
    record = {"config": as_dict(config), **made_from}
    path = out / "run.json"
    others = contents(out) if out.exists() else []
    if path.exists():
        found = read_json(path, CheckpointError, "run")
        different = _differences(found, record)
        if not different and (step := last_step(out / "checkpoints")) > config.max_steps:
            different = [f"{step} steps so far, more than max_steps = {config.max_steps}"]
        if not different:
            write_json(path, record)
            return
        if not overwrite:
            raise ConfigError(
                f"{out} was made with {'; '.join(different)}. Choose another --out, or give "
                "--overwrite."
            )
    elif others:
        raise ConfigError(
            f"{out} holds {others[0].name} but no run.json, so it is no run; choose another --out."
        )
    # The record goes last: after a kill the folder can still be told to be a run.
    for file in sorted(others, key=lambda file: file == path):
        remove(file)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


@contextmanager
def open_run(
    fabric: Fabric,
    out: Path,
    config: LoopConfig,
    made_from: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Iterator[None]:
    """Locks and prepares the run's folder on rank 0, before any process goes on.

    Every process raises what rank 0 does: none waits for one that has left.
    """
    problem: Exception | None = None
    with ExitStack() as held:
        if fabric.is_global_zero:
            try:
                held.enter_context(lock(out))
                prepare_run(out, config, made_from, overwrite=overwrite)
            except (PipelineError, OSError) as error:
                problem = error
        if problem := fabric.broadcast(problem):
            raise problem
        yield


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lists where two records of a run differ in more than what may change."""
    different = []
    for key in sorted({*found, *wanted}):
        ours, theirs = wanted.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            free = FREE_KEYS if key == "config" else ()
            if key == "config" and not ours.get("cosine") and not theirs.get("cosine"):
                free = (*free, "max_steps")  # At a constant rate, more steps just go on.
            inner = _differences(
                {k: v for k, v in theirs.items() if k not in free},
                {k: v for k, v in ours.items() if k not in free},
            )
            different += [f"{key}.{line}" for line in inner]
        elif ours != theirs:
            different.append(f"{key} = {theirs!r}, not {ours!r}")
    return different
