"""An output that a command makes or goes on with; one of another kind or content is refused."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.files import read_json, write_json
from pipeline.storage.places import Folder, Storage


def prepare_output(
    files: Storage,
    record: str,
    differences: Callable[[], Sequence[str]],
    *,
    what: str,
    error: type[PipelineError],
    overwrite: bool,
    first: str = "",
) -> None:
    """Leaves an output as it is if it is the one wanted, or makes room for that one.

    `record` names the file that says what an output is, and `differences` lists how the one there
    differs from the one wanted. Raises `error`, naming all of them, unless `overwrite` allows to
    delete it; what has no record is never touched. Call it under the lock of `files`, and write
    the record afterwards.
    """
    folder, _, own = record.rpartition("/")
    names = files.names()
    beside = files.names(folder) if folder else names
    others = [name for name in names if name != (folder or own)]
    if own in beside:
        if not (different := differences()):
            return
        if not overwrite:
            raise error(
                f"{files.root} was made with {'; '.join(different)}; choose another --out, or give "
                "--overwrite."
            )
    elif others:
        raise error(
            f"{files.root} holds {others[0]} but no {record}, so it is no {what}; choose another "
            "--out."
        )
    # The old record stays until the new one replaces it: after a kill the place is still known as
    # ours. What says which parts are finished goes before them, so that none is trusted then.
    finished = [f"{folder}/{name}" for name in beside if name != own] if folder else []
    for name in (*finished, *sorted(others, key=lambda name: name != first)):
        files.remove(name)


def prepare_folder(
    out: Path, record: str, made_from: Mapping[str, Any], *, what: str, overwrite: bool
) -> None:
    """Makes a folder, or checks that the one there was made from the same, and records that.

    Call it under its lock. Raises PipelineError as `prepare_output` does.
    """
    prepare_output(
        Folder(out),
        record,
        lambda: list_differences(read_json(out / record, PipelineError, what), made_from),
        what=what,
        error=PipelineError,
        overwrite=overwrite,
    )
    write_json(out / record, made_from)


def list_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lists the values in which a record differs from the one wanted, those of sections by path."""
    different = []
    for key in {**wanted, **found}:
        theirs, ours = found.get(key), wanted.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            different += [f"{key}.{line}" for line in list_differences(theirs, ours)]
        elif theirs != ours:
            different.append(f"{key} = {_shown(theirs)}, not {_shown(ours)}")
    return different


def _shown(value: object) -> str:
    """Shows a value as `--set` takes it; null is one that a record leaves unsaid, too."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
