"""A folder, a bucket or the hub -> a new folder: nothing is kept that was not checked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from pipeline.config import load_params
from pipeline.errors import PipelineError, ShareError
from pipeline.sharing.manifest import MANIFEST, Entry, Manifest
from pipeline.sharing.push import open_share, read_manifest
from pipeline.storage.bucket import Bucket
from pipeline.storage.files import contents, make_folder, parse_json, replacing, sha256_file
from pipeline.storage.hub import Hub
from pipeline.storage.places import Folder, Place
from pipeline.training.checkpoint import CHECKPOINTS, last_values
from pipeline.training.previews import FILE, FOLDER, read_previews

PIECE = 2**20
MOST_VALUES = 2**26
"""In a table of previews; more would be no previews."""


def pull(place: Place, out: Path, check: Callable[[Path], None]) -> tuple[Manifest, int]:
    """Copies what was pushed to `place` into the new folder `out`; returns how many files.

    Takes only files that the manifest lists, with the bytes that it lists, and each is read as what
    its name says; `check` does so with models and tokenizers. Raises ShareError, and makes nothing,
    if one of them is missing or something else, or if `out` holds anything other than that.
    """
    storage = open_share(place)
    manifest = read_manifest(storage)
    if out.exists() and not out.is_dir():
        raise ShareError(f"{out} is a file; choose another --out.")
    if out.is_dir() and contents(out):
        _check_same(out, manifest)
        return manifest, 0
    sizes = storage.sizes()
    for name, entry in manifest.files.items():
        _check_size(f"{storage.root}/{name}", entry, sizes.get(name))
    with replacing(out) as temporary:
        temporary.mkdir()
        for name, entry in manifest.files.items():
            _fetch(storage, name, entry, temporary / name)
        (temporary / MANIFEST).write_bytes(manifest.to_bytes())
        try:
            for name in manifest.files:
                _check_content(temporary, name)
            check(temporary)
        except PipelineError as error:
            said = str(error).replace(str(temporary), str(storage.root))
            raise ShareError(said) from None
    return manifest, len(manifest.files)


def _check_same(out: Path, manifest: Manifest) -> None:
    """Raises ShareError unless a folder is what is to be pulled, to the byte."""
    storage = Folder(out)
    if not (out / MANIFEST).exists():
        raise ShareError(f"{out} is not empty; choose another --out.")
    if different := read_manifest(storage).differences(manifest):
        raise ShareError(f"{out} was made with {'; '.join(different)}; choose another --out.")
    sizes = storage.sizes()
    for name, entry in manifest.files.items():
        _check_size(f"{out}/{name}", entry, sizes.get(name))
        if sha256_file(storage.place(name)) != entry.sha256:
            raise ShareError(f"{out}/{name} is not what was pulled; choose another --out.")


def _check_size(where: str, entry: Entry, size: int | None) -> None:
    if size is None:
        raise ShareError(f"{where} is missing, or no file; push it again with --overwrite.")
    if size != entry.bytes:
        raise ShareError(
            f"{where} has {size:,} bytes, but its manifest says {entry.bytes:,}; push it again "
            "with --overwrite."
        )


def _fetch(storage: Hub | Folder | Bucket, name: str, entry: Entry, target: Path) -> None:
    """Copies one file, never more of it than its manifest says."""
    make_folder(target.parent)
    digest, left = hashlib.sha256(), entry.bytes
    with storage.open(name) as source, target.open("wb") as file:
        while left and (piece := source.read(min(PIECE, left))):
            file.write(piece)
            digest.update(piece)
            left -= len(piece)
        more = source.read(1)
    if left or more or digest.hexdigest() != entry.sha256:
        raise ShareError(
            f"{storage.root}/{name} is damaged: its SHA-256 is not that of its manifest; "
            "push it again with --overwrite."
        )


def _check_content(folder: Path, name: str) -> None:
    """Raises PipelineError unless a file is what its name says."""
    path = folder / name
    if path.suffix == ".json":
        parse_json(path.read_bytes(), name, ShareError, "run")
    elif name == "metrics.jsonl":
        _check_log(path)
    elif path.suffix == ".yaml":
        load_params(path)
    elif path.suffix == ".safetensors":
        _check_tensors(path)
    elif path.suffix == ".parquet":
        _check_previews(folder)
    elif path.suffix in (".webp", ".gif"):
        with path.open("rb") as file:
            start = file.read(12)
        if not (start[:4] == b"RIFF" and start[8:] == b"WEBP") and start[:4] != b"GIF8":
            raise ShareError(f"{name} is no picture.")
    elif name == f"{CHECKPOINTS}/last":
        last_values(folder / CHECKPOINTS)


def _check_log(path: Path) -> None:
    with path.open("rb") as file:
        while line := file.readline(PIECE):
            try:
                whole = isinstance(json.loads(line)["step"], int)
            except (ValueError, KeyError, TypeError, RecursionError):
                whole = False
            if not whole:
                raise ShareError(f"{path.name} is no log of a run.")


def _check_tensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ShareError(
            f"{path.name} is not a readable safetensors file: {str(error).rstrip('.')}."
        ) from None


def _check_previews(folder: Path) -> None:
    try:
        about = pq.ParquetFile(folder / FOLDER / FILE).metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        values = sum(g.column(i).num_values for g in groups for i in range(g.num_columns))
    except (pa.ArrowException, ValueError, OSError):
        raise ShareError(f"{FOLDER}/{FILE} is no table of previews.") from None
    if values > MOST_VALUES:
        raise ShareError(f"{FOLDER}/{FILE} has {values:,} values, too many for previews.")
    read_previews(folder)
