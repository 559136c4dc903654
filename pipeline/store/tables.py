"""The tables that say what the rows of a store are: the plan, and the list of their frames."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.condition_files import MAX_LABEL, is_label
from pipeline.errors import TokenStoreError
from pipeline.frame_list import FRAMES, SOURCE_SCHEMA, source_of
from pipeline.storage.places import Storage
from pipeline.storage.sealed import from_parquet
from pipeline.store.layout import INFO, LABEL, PLAN, PLAN_SCHEMA, REDO, StoreInfo, hash_plan

LABELLED_SCHEMA = PLAN_SCHEMA.append(pa.field(LABEL, pa.string()))


def with_labels(plan: pa.Table, labels: Sequence[str | None]) -> pa.Table:
    """Adds the label of each row to a plan without labels, unless none is known."""
    if all(label is None for label in labels):
        return plan
    column = pa.array(labels, pa.string())
    return pa.Table.from_arrays([*plan.columns, column], schema=LABELLED_SCHEMA)


def labels_of(plan: pa.Table) -> dict[tuple[str, str], str | None]:
    """Returns the label of each video, by split and name."""
    keys = zip(plan["split"].to_pylist(), plan["video"].to_pylist(), strict=True)
    labels = plan[LABEL].to_pylist() if LABEL in plan.column_names else [None] * len(plan)
    return dict(zip(keys, labels, strict=True))


def videos_of(plan: pa.Table) -> list[tuple[str, str]]:
    """Returns split and name of each video of a plan, in order."""
    return list(
        dict.fromkeys(zip(plan["split"].to_pylist(), plan["video"].to_pylist(), strict=True))
    )


def label_names(plan: pa.Table) -> list[str]:
    """Returns the names of the labels of a plan, in order."""
    if LABEL not in plan.column_names:
        return []
    return sorted(pc.unique(plan[LABEL]).drop_null().to_pylist())


def read_plan(files: Storage, info: StoreInfo, plan_hash: str) -> pa.Table:
    """Reads what each row of a store is. Raises TokenStoreError if that is another plan."""
    plan = _read(files, PLAN, sum(info.counts.values()), PLAN_SCHEMA, LABELLED_SCHEMA)
    path = files.place(PLAN)
    if hash_plan(plan) != plan_hash:
        raise TokenStoreError(f"{path} is not the plan that {INFO} was written with; {REDO}.")
    if wrong := [name for name in label_names(plan) if not is_label(name)]:
        raise TokenStoreError(f"{path} holds {wrong[0][:MAX_LABEL]!r}, which is no label.")
    return plan


def read_source(files: Storage, info: StoreInfo, rows: int | None) -> pa.Table | None:
    """Reads which frames tokens were made from; None if `rows` says that no list is kept.

    Raises TokenStoreError if it lists others.
    """
    if rows is None:
        return None
    table = _read(files, FRAMES, rows, SOURCE_SCHEMA)
    if source_of(table) != info.source:
        path = files.place(FRAMES)
        raise TokenStoreError(f"{path} lists other frames than {INFO} was written with; {REDO}.")
    return table


def _read(files: Storage, name: str, rows: int, *schemas: pa.Schema) -> pa.Table:
    """Reads a table of so many rows, and the one of these schemas that has its columns."""
    path = files.place(name)
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise TokenStoreError(f"{path} is missing; {REDO}.") from None
    try:
        table = from_parquet(data, rows=rows)
        fitting = [schema for schema in schemas if schema.names == table.column_names]
        return table.cast((fitting or schemas)[0])
    except (pa.ArrowException, ValueError, OSError) as error:
        problem = str(error).splitlines()[0]
        raise TokenStoreError(f"{path} is damaged: {problem}; {REDO}.") from None
