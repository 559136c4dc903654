"""The tables that say what the rows of a store are: the plan, and the list of their frames."""

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.condition_files import MAX_LABEL, MAX_TEXT, is_label
from pipeline.errors import TokenStoreError
from pipeline.frame_list import FRAMES, SOURCE_SCHEMA, source_of
from pipeline.storage.places import Storage
from pipeline.storage.sealed import from_parquet
from pipeline.store.layout import (
    CAPTION,
    INFO,
    LABEL,
    PLAN,
    PLAN_SCHEMA,
    REDO,
    TEXTS,
    StoreInfo,
    hash_plan,
)


def plan_schema(names: Collection[str]) -> pa.Schema:
    """Returns the columns of a plan with those of `TEXTS` that are among these names."""
    return pa.schema([*PLAN_SCHEMA, *((name, pa.string()) for name in TEXTS if name in names)])


def with_texts(plan: pa.Table, name: str, texts: Sequence[str | None]) -> pa.Table:
    """Adds the label or caption of each row to a plan, in place of what it has, if any is known."""
    if all(text is None for text in texts):
        return plan
    columns = dict(zip(plan.column_names, plan.columns, strict=True))
    columns[name] = pa.array(texts, pa.string())
    schema = plan_schema(columns)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def texts_of(plan: pa.Table, name: str) -> dict[tuple[str, str], str | None]:
    """Returns the label or caption of each video, by split and name."""
    keys = zip(plan["split"].to_pylist(), plan["video"].to_pylist(), strict=True)
    texts = plan[name].to_pylist() if name in plan.column_names else [None] * len(plan)
    return dict(zip(keys, texts, strict=True))


def videos_of(plan: pa.Table) -> list[tuple[str, str]]:
    """Returns split and name of each video of a plan, in order."""
    return list(
        dict.fromkeys(zip(plan["split"].to_pylist(), plan["video"].to_pylist(), strict=True))
    )


def different_texts(plan: pa.Table, name: str) -> list[str]:
    """Returns the labels or captions of a plan, each once, in order."""
    if name not in plan.column_names:
        return []
    return sorted(pc.unique(plan[name]).drop_null().to_pylist())


def read_plan(files: Storage, info: StoreInfo, plan_hash: str) -> pa.Table:
    """Reads what each row of a store is. Raises TokenStoreError if that is another plan."""
    plan = _read(files, PLAN, sum(info.counts.values()))
    path = files.place(PLAN)
    if hash_plan(plan) != plan_hash:
        raise TokenStoreError(f"{path} is not the plan that {INFO} was written with; {REDO}.")
    if wrong := [name for name in different_texts(plan, LABEL) if not is_label(name)]:
        raise TokenStoreError(f"{path} holds {wrong[0][:MAX_LABEL]!r}, which is no label.")
    if any(not 0 < len(text) <= MAX_TEXT for text in different_texts(plan, CAPTION)):
        raise TokenStoreError(f"{path} holds a caption that is empty or too long.")
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


def _read(files: Storage, name: str, rows: int, schema: pa.Schema | None = None) -> pa.Table:
    """Reads a table of so many rows, and of this schema, or that of a plan with its columns."""
    path = files.place(name)
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise TokenStoreError(f"{path} is missing; {REDO}.") from None
    try:
        table = from_parquet(data, rows=rows)
        table.validate(full=True)
        return table.cast(schema or plan_schema(table.column_names))
    except (pa.ArrowException, ValueError, OSError) as error:
        problem = str(error).splitlines()[0]
        raise TokenStoreError(f"{path} is damaged: {problem}; {REDO}.") from None
