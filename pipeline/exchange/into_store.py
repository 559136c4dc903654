"""A token store of ids of others: checked as a whole, then written shard by shard."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.exchange.arrays import FileArray
from pipeline.exchange.given import given_states, text_beside, text_in_file
from pipeline.exchange.ids import Codebook, Ids, ImportConfig, Maker
from pipeline.exchange.windows import Cut, WindowFiles, cut_of, cut_windows, plan_of, read_all
from pipeline.progress import progress
from pipeline.size import Size, check_size
from pipeline.storage.places import Place, open_storage
from pipeline.store.given import GivenStates
from pipeline.store.layout import MAX_SHARD_BYTES, SMALL_CODEBOOK, TEXTS, StoreInfo
from pipeline.store.states import States
from pipeline.store.writer import StoreWriter, create_store

SHARD_WINDOWS, CHUNK_WINDOWS = 4096, 64
"""Of a store, unless its windows are so large that a shard must have fewer."""


@dataclass(frozen=True)
class Imported:
    """What was made."""

    info: StoreInfo
    """Of the store."""
    said: Sequence[str]
    """What was left out, a line each."""


def codebook_of(sources: Sequence[Ids], config: ImportConfig) -> Codebook | None:
    """Returns the codebook that numbers are of; None if neither files nor values say it.

    Raises PipelineError if they say different things.
    """
    sizes = {config.codebook_size, *(ids.codebook_size for ids in sources)}
    sizes |= {math.prod(config.levels)} if config.levels else set()
    sizes |= {config.maker.codebook_size} if config.maker else set()
    known = sorted(size for size in sizes if size)
    if len(known) > 1:
        raise PipelineError(f"codebooks of {' and '.join(map(str, known))} are meant, not of one.")
    return Codebook(known[0], config.levels) if known else None


def import_ids(
    sources: Mapping[str, Ids],
    out: Place,
    config: ImportConfig,
    *,
    texts: Mapping[str, Path] | None = None,
    states: Path | None = None,
    overwrite: bool = False,
) -> Imported:
    """Makes a store of the ids of each split, with `texts` and `states` of files, if given.

    Goes on where an earlier call was cut off. Raises PipelineError if files hold anything but
    tokens of the codebook, differ in their grid, or have no window.
    """
    found = list(sources.values())
    codebook = codebook_of(found, config)
    if codebook is None:
        raise PipelineError(f"{found[0].place} does not say how large its codebook is.")
    _check_alike(found)
    cut = cut_of(found, config)
    windows: dict[str, WindowFiles] = {}
    said: list[str] = []
    for name, ids in sources.items():
        parts, left = cut_windows(ids, name, cut, config.test_share)
        windows |= {split: WindowFiles(ids, p, cut, codebook) for split, p in parts.items()}
        said += [*ids.said, *left]
    info = _store_info(windows, cut, codebook, config)
    info = replace(info, source=_fingerprint(found, codebook))
    plan = pa.concat_tables(
        plan_of(of.ids, split, of.parts, cut, info.shard_windows) for split, of in windows.items()
    )
    for name in TEXTS:
        lines: list[str] = []
        if texts and name in texts:
            plan, lines = text_in_file(plan, name, texts[name], windows=found[0].are_windows)
        elif name in config.beside:
            plan, lines = text_beside(plan, name, sources)
        said += lines
    given = None
    if states:
        given = given_states(info, plan, states, found[0], cut, config.maker)
        info = replace(info, extra={**info.extra, **given.extra()})
        said += given.said()
    storage = open_storage(out)
    with storage.lock():
        writer = create_store(storage, info, plan, overwrite=overwrite)
        _fill(writer, windows, given)
    return Imported(info, said)


def _check_alike(found: Sequence[Ids]) -> None:
    """Raises PipelineError unless what two places hold can be one store."""
    first = found[0]
    for ids in found[1:]:
        for what, theirs, ours in (
            ("a grid of", _grid_said(ids), _grid_said(first)),
            ("frames a second:", ids.fps, first.fps),
            ("frames a piece:", ids.frames, first.frames),
            ("states", _widths(ids), _widths(first)),
        ):
            if theirs != ours:
                raise PipelineError(f"{ids.place} has {what} {theirs}, but {first.place} {ours}.")


def _grid_said(ids: Ids) -> list[int]:
    return [*([ids.unit] if ids.are_windows else []), *ids.size]


def _widths(ids: Ids) -> dict[str, int]:
    return {name: array.shape[1] for name, array in ids.videos[0].states}


def _store_info(
    windows: Mapping[str, WindowFiles], cut: Cut, codebook: Codebook, config: ImportConfig
) -> StoreInfo:
    """Returns what the store will say of itself, but for the content's fingerprint."""
    ids = next(iter(windows.values())).ids
    grid = (cut.units * ids.unit, *ids.size)
    extra: dict[str, Any] = {} if ids.are_windows else {"hop": cut.hop * ids.unit}
    one_piece = cut.units == 1 or not ids.causal
    frames = cut.units * ids.frames if ids.frames and one_piece else None
    size = None
    if config.maker:
        if not one_piece or frames not in (None, config.maker.frames(grid[0])):
            raise PipelineError(
                f"{ids.place} has windows of {cut.units} pieces of {ids.frames} frames; its "
                f"tokenizer decodes {grid[0]} latent frames as {config.maker.frames(grid[0])}."
            )
        frames = config.maker.frames(grid[0])
        size = _decoded_size(ids, config.maker)
    states = None
    if _widths(ids):
        states = States(cut.units * (ids.frames or 0), _widths(ids))
        extra |= states.recorded()
    if (ids.causal and one_piece) or (config.maker and config.maker.causal):
        extra["causal"] = True
    of_states = states.frames * sum(states.widths.values()) * 4 if states else 0
    bytes_each = max(math.prod(grid) * (2 if codebook.size < SMALL_CODEBOOK else 4), of_states)
    shard_windows = SHARD_WINDOWS
    while shard_windows > 1 and shard_windows * bytes_each > MAX_SHARD_BYTES:
        shard_windows //= 2
    return StoreInfo(
        tokenizer=config.maker.identity if config.maker else None,
        codebook_size=codebook.size,
        grid=grid,
        source="",
        counts={split: int(of.ends[-1]) for split, of in windows.items()},
        shard_windows=shard_windows,
        chunk_windows=min(CHUNK_WINDOWS, shard_windows),
        frames=frames,
        size=size,
        stride=config.stride if frames else None,
        fps=ids.fps / config.stride if ids.fps and frames else None,
        extra=extra,
    )


def _decoded_size(ids: Ids, maker: Maker) -> Size:
    """Returns the size of frames as `maker` decodes them; raises where it decodes none so large."""
    try:
        return check_size("a side of frames", maker.size(*ids.size))
    except ValueError as error:
        (h, w), axes = ids.size, "[N, t, h, w]" if ids.are_windows else "[T, h, w]"
        said = str(error).rstrip(".")
        raise PipelineError(
            f"{ids.place} has {h}x{w} tokens a latent frame, which its tokenizer cannot decode: "
            f"{said}. The axes must be {axes}."
        ) from None


def _fingerprint(found: Sequence[Ids], codebook: Codebook) -> str:
    """Hashes all ids, whatever their type, then all states; raises at what is no token."""
    videos = [video for ids in found for video in ids.videos]
    ids = list(dict.fromkeys(video.ids for video in videos))
    states = list(dict.fromkeys(array for video in videos for _, array in video.states))
    digest = hashlib.sha256()
    rows = sum(array.shape[0] for array in (*ids, *states))
    with progress("check", rows, "row") as advance:

        def add(array: FileArray, kind: str) -> None:
            for start, stop in read_all(array):
                if kind == "<i8":
                    numbers: Any = codebook.tokens(array, start, stop)
                else:
                    numbers = array.read(start, stop)
                    if len(bad := np.flatnonzero(np.isinf(numbers).any(axis=1))):
                        raise PipelineError(
                            f"{array} is infinite in row {start + int(bad[0])}, counted from 0; "
                            "write NaN where a number is not known."
                        )
                digest.update(numbers.astype(kind).tobytes())
                advance(stop - start)

        for array in ids:
            add(array, "<i8")
        for array in states:
            add(array, "<f4")
    return digest.hexdigest()


def _fill(
    writer: StoreWriter, windows: Mapping[str, WindowFiles], given: GivenStates | None
) -> None:
    """Writes the shards that are missing or damaged."""
    info, states = writer.info, States.of(writer.info)
    missing = set(writer.unfinished())
    with progress("import", sum(info.counts.values()), "window") as advance:
        for split, shard in info.shards():
            start, stop = info.shard_rows(split, shard)
            if (split, shard) in missing:
                files, table = windows[split], None
                if given:
                    table = given.table(split, shard)
                elif states:
                    table = states.table(info, split, shard, files.states(start, stop))
                writer.write_shard(split, shard, files.tokens(start, stop), table)
            advance(stop - start)
