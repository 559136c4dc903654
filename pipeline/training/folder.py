"""Creates and locks a run's folder; refuses one of another run."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning_fabric import Fabric

from pipeline.config import as_dict
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.frame_list import FRAMES, SOURCE_SCHEMA, difference, source_of
from pipeline.storage.files import lock, read_json, write_bytes, write_json
from pipeline.storage.outputs import list_differences, prepare_output
from pipeline.storage.places import Folder
from pipeline.storage.sealed import from_parquet, to_parquet
from pipeline.training.checkpoint import CHECKPOINTS, last_sha256, last_step
from pipeline.training.task import KEYS_THAT_MAY_CHANGE, LoopConfig

RECORD = "run.json"
BEFORE: Mapping[str, Mapping[str, Any]] = {
    "model": {"block": "published"},
    "config": {"optimizer": "adamw", "empty_share": 0.0, "change_weight": 0.0},
}
"""What runs of earlier versions did whose record does not say so, by part of the record."""
UNSAID: Mapping[str, Mapping[str, Any]] = {
    "config": {
        **{"condition_dropout": 0.1, "context_noise": 0.0, "stable_share": 0.0},
        "frames": None,
    }
}
"""Values that a record does not say, by part of it: it stays what it was before there were such."""


def prepare_run(
    out: Path,
    config: LoopConfig,
    made_from: Mapping[str, Any],
    *,
    frames: pa.Table | None = None,
    overwrite: bool,
) -> None:
    """Makes the run's folder, or checks that the one there is of the same run.

    `frames` lists those that the run learns from, if it does, and `made_from` holds its hash as
    `source`. An unfinished run goes on with frames of the same names that were mended or changed,
    and says which. Raises ConfigError, naming the differences, unless `overwrite` lets it start
    afresh. A folder without the record of a run is never touched.
    """
    record = _said({"config": as_dict(config), **made_from})

    def differences() -> list[str]:
        found = _completed(read_json(out / RECORD, CheckpointError, "run"), record)
        different = _differences(found, _completed(record, found))
        step = last_step(out / CHECKPOINTS)
        if frames is not None and found.get("source") != record["source"]:
            about = _other_frames(out, found, frames, finished=step >= config.max_steps)
            different = [about if line.startswith("source = ") else line for line in different]
            different = list(filter(None, different))
        if not different and step > config.max_steps:
            different = [f"{step} steps so far, more than max_steps = {config.max_steps}"]
        return different

    prepare_output(
        Folder(out), RECORD, differences, what="run", error=ConfigError, overwrite=overwrite
    )
    _write_record(out, record, frames)


def read_record(path: Path) -> dict[str, Any]:
    """Reads the record of a run. Raises CheckpointError if it is that of none."""
    found = read_json(path, CheckpointError, "run")
    parts = ("model", "tokens") if "model" in found else ("tokenizer", "windows")
    if not all(isinstance(found.get(part), dict) for part in ("config", *parts)):
        raise CheckpointError(f"{path} is not what `mebt train` or `mebt fit-tokenizer` writes.")
    return found


def recorded(out: Path, key: str) -> object:
    """Returns a value that a run goes on with; None if there is none yet."""
    path = out / RECORD
    config = read_json(path, CheckpointError, "run").get("config") if path.exists() else None
    return config.get(key) if isinstance(config, dict) else None


def last_state(run: Path, weights: Path, *, max_steps: int, optimizer: str) -> dict[str, Any]:
    """Returns the record of a run's last checkpoint, for another run to begin with.

    Raises PipelineError if there is none, if `max_steps` are done already, or if it holds the state
    of another optimizer; `weights` is named as what may be begun with all the same.
    """
    step = last_step(run / CHECKPOINTS)
    if not step:
        raise CheckpointError(
            f"{run} has no checkpoint to go on from; give --init {weights} to begin with its "
            "weights alone."
        )
    if step >= max_steps:
        raise ConfigError(
            f"{run} has done {step} steps already: train.max_steps must be above that, got "
            f"{max_steps}."
        )
    if (kept := recorded(run, "optimizer") or "adamw") != optimizer:
        raise CheckpointError(
            f"{run} holds the state of {kept}, but train.optimizer is {optimizer}; make "
            f"them agree, or give --init {weights} to begin with its weights alone."
        )
    return {"step": step, "sha256": last_sha256(run / CHECKPOINTS)}


def _write_record(out: Path, record: Mapping[str, Any], frames: pa.Table | None) -> None:
    """Writes what the run is; that goes first in a new folder, and last where it replaces one."""
    if not (out / RECORD).exists():
        write_json(out / RECORD, record)
    if frames is not None:
        write_bytes(out / FRAMES, to_parquet(frames))
    write_json(out / RECORD, record)


def _other_frames(out: Path, found: Mapping[str, Any], frames: pa.Table, *, finished: bool) -> str:
    """Says how the frames differ from those of the run; nothing if it may go on with them."""
    try:
        before = from_parquet((out / FRAMES).read_bytes(), rows=None).cast(SOURCE_SCHEMA)
    except FileNotFoundError:
        return "other frames, which an earlier version did not list"
    except (pa.ArrowException, ValueError, OSError):
        return f"other frames, and {out / FRAMES}, which lists them, is damaged"
    # A kill can leave the list of the new frames beside the record of the old ones.
    if source_of(before) not in (found.get("source"), source_of(frames)):
        return f"other frames, and {out / FRAMES} lists those of another run"
    differs = difference(before, frames)
    if finished or not differs.same_names:
        return f"other frames: {differs}"
    print(f"{out}: other frames than before: {differs}", file=sys.stderr, flush=True)
    return ""


@contextmanager
def open_run(
    fabric: Fabric,
    out: Path,
    config: LoopConfig,
    made_from: Mapping[str, Any],
    *,
    frames: pa.Table | None = None,
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
                prepare_run(out, config, made_from, frames=frames, overwrite=overwrite)
            except (PipelineError, OSError) as error:
                problem = error
        if problem := fabric.broadcast(problem):
            raise problem
        yield


def _said(record: dict[str, Any]) -> dict[str, Any]:
    """Leaves out of a record what needs not be said."""
    for part, values in UNSAID.items():
        said = record.get(part, {})
        record[part] = {k: v for k, v in said.items() if k not in values or v != values[k]}
    return record


def _completed(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a record what it leaves unsaid and another one, which it is compared with, says."""
    completed = dict(record)
    for unsaid in (BEFORE, UNSAID):
        for part, values in unsaid.items():
            said = other.get(part)
            if isinstance(completed.get(part), dict) and isinstance(said, dict):
                completed[part] = {k: v for k, v in values.items() if k in said} | completed[part]
    return completed


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lists where two records of a run differ in more than what may change."""
    free = {f"config.{key}" for key in KEYS_THAT_MAY_CHANGE}
    configs = (found.get("config"), wanted["config"])
    if not any(isinstance(config, dict) and config.get("cosine") for config in configs):
        free.add("config.max_steps")  # At a constant rate, more steps just go on.
    different = list_differences(found, wanted)
    return [line for line in different if line.partition(" = ")[0] not in free]
