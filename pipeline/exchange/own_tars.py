"""Token stores as WebDataset tars and back: each window one sample, `SPLIT-ROW.npy` and `.json`.

Its caption, if it has one, is in `.txt`, too. Keys are unique over the store, so that all its tars
may be read as one set. Beside the tars lie the store's own `store.json`, `plan.parquet`,
`frames.parquet` and `states/`. So what comes back is the same store, byte for byte, and other tools
read the tars without knowing any of these.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError, TokenStoreError
from pipeline.frame_list import FRAMES
from pipeline.progress import progress
from pipeline.storage.files import make_folder, parse_json, replacing, to_json
from pipeline.storage.places import Folder, Place, open_storage
from pipeline.storage.tars import Member, add, new_tar, read_samples
from pipeline.store.layout import CAPTION, INFO, PLAN, header_name
from pipeline.store.reader import TokenStore
from pipeline.store.states import write_states
from pipeline.store.writer import create_store


def export_tars(store: TokenStore, out: Path, *, advance: Callable[[int], None]) -> None:
    """Writes every split of a store as a new folder of tars, one for each shard.

    Raises PipelineError if `out` is there already.
    """
    if out.exists():
        raise PipelineError(f"{out} exists; choose another --out.")
    with replacing(out) as folder:
        make_folder(folder)
        if store.made_from is not None:
            (folder / FRAMES).write_bytes(store.files.read(FRAMES))
        for name in (INFO, PLAN):
            (folder / name).write_bytes(store.files.read(name))
        for split, shard in store.info.shards():
            rows = store.plan(split).slice(*_span(store, split, shard)).to_pylist()
            with new_tar(folder / f"{split}-{shard:05d}.tar") as tar:
                for row, tokens in zip(rows, store.read_shard(split, shard), strict=True):
                    key, array = _key(split, row["row"]), _to_npy(tokens)
                    add(tar, key, "json", to_json({**row, "crc32": zlib.crc32(array)}))
                    add(tar, key, "npy", array)
                    if caption := row.get(CAPTION):
                        add(tar, key, "txt", caption.encode())
            states = store.states(split, shard)
            if states is not None:
                write_states(Folder(folder), split, shard, states)
            advance(len(rows))


def open_exported(folder: Path) -> TokenStore:
    """Opens what `export_tars` wrote as the store that it is of, which has no shards.

    Raises TokenStoreError if it is damaged, or a token store, which has them.
    """
    exported = TokenStore(folder, allow_partial=True)
    if any((folder / header_name(split)).exists() for split in exported.splits):
        raise TokenStoreError(
            f"{folder} is a token store already, not tars of one: give it to train, sample or "
            "decode as it is; for another store of the same tokens, copy the folder."
        )
    return exported


def restore_tars(exported: TokenStore, out: Place, *, overwrite: bool = False) -> TokenStore:
    """Makes the store of tars again, once all of them are checked, or goes on with it.

    `exported` is what `open_exported` returns. Raises TokenStoreError, naming tar and member, for
    anything but what `export_tars` wrote; then nothing is made.
    """
    if not exported.fits(plan := exported.plan()):
        raise TokenStoreError(f"{exported.root}/{PLAN} does not list the rows that {INFO} counts.")
    source, total = exported.made_from, sum(exported.info.counts.values())
    with progress("check", total, "window") as advance:
        for split, shard in exported.info.shards():
            advance(len(_read_shard(exported, split, shard)[0]))
    files = open_storage(out)
    with files.lock(), progress("import", total, "window") as advance:
        writer = create_store(files, exported.info, plan, source=source, overwrite=overwrite)
        missing = set(writer.unfinished())
        for split, shard in exported.info.shards():
            if (split, shard) in missing:
                writer.write_shard(split, shard, *_read_shard(exported, split, shard))
            advance(_span(exported, split, shard)[1])
    return TokenStore(out)


def _read_shard(
    exported: TokenStore, split: str, shard: int
) -> tuple[NDArray[np.unsignedinteger], pa.Table | None]:
    """Returns the tokens [n, t, h, w] of a tar, each checked, and the states of their frames."""
    start, count = _span(exported, split, shard)
    path = Path(exported.root) / f"{split}-{shard:05d}.tar"
    if not path.is_file() or path.is_symlink():
        raise TokenStoreError(f"{path} is missing; export the store again.")
    window = int(np.prod(exported.grid)) * exported.info.dtype.itemsize
    if count * window > path.stat().st_size:
        raise TokenStoreError(f"{path} is too short for {count} windows; export the store again.")
    tokens = np.empty((count, *exported.grid), exported.info.dtype)
    read = 0
    for number, (member, crc32) in enumerate(_arrays(path)):
        row = start + number
        names = (f"{_key(split, row)}.npy", f"{row:09d}.npy")  # The latter in the first versions.
        if number >= count or member.name not in names:
            raise TokenStoreError(f"{member} is not the next of {count} rows from {start}.")
        tokens[number] = _from_npy(member, exported, crc32)
        read += 1
    if read < count:
        raise TokenStoreError(f"{path} holds {read} windows, not {count}; export the store again.")
    return tokens, exported.states(split, shard)


def _arrays(path: Path) -> Iterator[tuple[Member, object]]:
    """Yields each window's array, and the CRC that was written beside it, if there is one."""
    for _, sample in read_samples(path, TokenStoreError):
        if "npy" not in sample:
            raise TokenStoreError(f"{next(iter(sample.values()))} has no .npy beside it.")
        about = sample.get("json")
        text = about.read_text(TokenStoreError) if about else b"{}"
        yield sample["npy"], parse_json(text, about, TokenStoreError, "window").get("crc32")


def _key(split: str, row: int) -> str:
    return f"{split}-{row:09d}"


def _span(store: TokenStore, split: str, shard: int) -> tuple[int, int]:
    start, stop = store.shard_rows(split, shard)
    return start, stop - start


def _to_npy(array: NDArray[np.unsignedinteger]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _from_npy(member: Member, store: TokenStore, crc32: object) -> NDArray[np.unsignedinteger]:
    """Reads a window's tokens [t, h, w], never more than a window has, and nothing pickled."""
    expected = _to_npy(np.zeros(store.grid, store.info.dtype))
    header = len(expected) - int(np.prod(store.grid)) * store.info.dtype.itemsize
    data = member.read() if member.size == len(expected) else b""
    if data[:header] != expected[:header]:
        raise TokenStoreError(
            f"{member} is no array of {store.info.dtype} {list(store.grid)}, as {INFO} says."
        )
    if crc32 not in (None, zlib.crc32(data)):
        raise TokenStoreError(f"{member} is damaged: its CRC is another; export the store again.")
    tokens = np.frombuffer(data, store.info.dtype, offset=header).reshape(store.grid)
    if int(tokens.max()) >= store.codebook_size:
        raise TokenStoreError(f"{member} holds token {tokens.max()} of {store.codebook_size}.")
    return tokens
