"""Ids of any tokenizer in and out of a token store, as `.npy` arrays [N, t, h, w]."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.progress import progress
from pipeline.storage.files import replacing
from pipeline.storage.places import Place, open_storage
from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store

SHARD_WINDOWS = 4096
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
"""How an .npy begins; and an .npz, which is refused as an archive."""


def import_npy(
    files: Mapping[str, Path], out: Place, codebook_size: int, *, overwrite: bool
) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Makes a store of the ids in one file for each split; returns windows by split, and the grid.

    Goes on where an earlier call was cut off. Raises PipelineError if a file holds anything but
    ids below `codebook_size`, or files differ in their grid.
    """
    arrays = {split: _open_ids(path, codebook_size) for split, path in files.items()}
    first, *others = arrays
    for other in others:
        if arrays[other].shape[1:] != arrays[first].shape[1:]:
            raise PipelineError(
                f"{files[other]} has a grid {list(arrays[other].shape[1:])}, but {files[first]} "
                f"has {list(arrays[first].shape[1:])}."
            )
    t, h, w = arrays[first].shape[1:]
    counts = {split: len(array) for split, array in arrays.items()}
    digest = hashlib.sha256()
    for array in arrays.values():
        for start in range(0, len(array), SHARD_WINDOWS):
            digest.update(array[start : start + SHARD_WINDOWS].astype("<i8").tobytes())
    info = StoreInfo(
        tokenizer=None,
        codebook_size=codebook_size,
        grid=(t, h, w),
        source=digest.hexdigest(),
        counts=counts,
        shard_windows=SHARD_WINDOWS,
    )
    storage = open_storage(out)
    with storage.lock():
        plan = numbered_plan(counts, "imported", info.shard_windows)
        writer = create_store(storage, info, plan, overwrite=overwrite)
        with progress("import", sum(counts.values()), "window") as advance:
            done = set(info.shards()) - set(writer.unfinished())
            for split, shard in info.shards():
                start, stop = info.shard_rows(split, shard)
                if (split, shard) not in done:
                    writer.write_shard(split, shard, np.asarray(arrays[split][start:stop]))
                advance(stop - start)
    return counts, (t, h, w)


def export_npy(store: TokenStore, split: str, out: Path) -> int:
    """Writes the ids of a split as one array; returns how many windows they are."""
    count = store.num_windows(split)
    with replacing(out) as temporary:
        array = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=store.info.dtype, shape=(count, *store.grid)
        )
        with progress("export", count, "window") as advance:
            for shard in range(store.num_shards(split)):
                start, stop = store.shard_rows(split, shard)
                array[start:stop] = store.read_shard(split, shard)
                advance(stop - start)
        array.flush()
        del array
    return count


def _raw_array(path: Path, codebook_size: int) -> str:
    """Says what a file without a header may be, and how to give it one."""
    kind = "uint16" if codebook_size <= 1 << 16 else "uint32"
    read = f"np.memmap({str(path)!r}, '{kind}', 'r').reshape(-1, t, h, w)"
    return (
        f"{path} is no .npy: it begins with no header. If its {path.stat().st_size:,} bytes are a "
        "raw array, as np.memmap and tofile write it, say of which type and grid it is, for "
        f"example: python -c \"import numpy as np; np.save('ids.npy', {read})\" with numbers for "
        "t, h and w, and import ids.npy. Anything else, such as a pickle, is not read."
    )


def _open_ids(path: Path, codebook_size: int) -> NDArray[np.integer]:
    """Maps an `.npy` of ids [N, t, h, w] into memory. Never unpickles."""
    with path.open("rb") as file:
        if not file.read(len(NPY)).startswith((NPY, ZIP)):
            raise PipelineError(_raw_array(path, codebook_size))
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path} is no .npy of numbers: {str(error).rstrip('.')}.") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 4 or ids.dtype.kind not in "iu":
        kind = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "an archive"
        raise PipelineError(f"{path} must hold integers [N, t, h, w], but holds {kind}.")
    if not ids.size:
        raise PipelineError(f"{path} holds no window: its shape is {list(ids.shape)}.")
    if int(ids.min()) < 0 or int(ids.max()) >= codebook_size:
        raise PipelineError(
            f"{path} holds ids {ids.min()} … {ids.max()}, but --codebook-size is {codebook_size}: "
            f"ids must be 0 … {codebook_size - 1}."
        )
    return ids
