"""What a path holds: told by what is there, not by a flag."""

from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.exchange.arrays import NPY, ZIP
from pipeline.exchange.folders import (
    OPENERS,
    TAR,
    files_below,
    left_out,
    open_array,
    open_folder,
    open_tars,
    within,
)
from pipeline.exchange.ids import Ids, ImportConfig
from pipeline.exchange.one_x import METADATA, open_one_x
from pipeline.storage.files import contents, printable
from pipeline.store.layout import INFO

SPLITS = ("train", "test")
TAR_MAGIC = b"ustar", 257
"""What stands in a tar, and where."""


def open_ids(place: Path, config: ImportConfig) -> Ids:
    """Opens what a path holds: one file, tars, a folder of files, or a layout of 1X.

    Raises PipelineError, in one line, for anything else, and for what is damaged or leads out of
    the folder.
    """
    if not place.is_dir():
        return _open_file(place, config)
    if (place / METADATA).exists():
        return open_one_x(place, config)
    paths = list(files_below(place))
    tars = [path for path in paths if path.suffix == TAR and path.is_file()]
    arrays = [path for path in paths if path.suffix in OPENERS and path.is_file()]
    if tars and arrays:
        raise PipelineError(
            f"{place} holds both {printable(tars[0].name)} and {printable(arrays[0].name)}: keep "
            "tars and single files in folders of their own."
        )
    if tars:
        return open_tars(place, tars, config)
    if arrays:
        return open_folder(place, config)
    if (place / INFO).exists():
        raise PipelineError(f"{place} is a token store already, which needs no import.")
    raise PipelineError(
        f"{place} holds no ids: no .npy, .safetensors or .tar, no {METADATA} of 1X's layouts, and "
        "no store.json of `mebt tokens export --format webdataset`."
    )


def given_splits(place: Path) -> dict[str, Path]:
    """Returns the folders `train` and `test`, if there are both; else what was given, as train."""
    if not all((place / split).is_dir() for split in SPLITS):
        return {"train": place}
    return {split: within(place, place / split) for split in SPLITS}


def outside_splits(place: Path) -> tuple[str, ...]:
    """Says what lies beside the folders `train` and `test`, which is left out."""
    names = [path.name for path in contents(place) if path.name not in SPLITS]
    return left_out([n for n in names if n[0] != "."], "what is outside of train/ and test/")


def _open_file(path: Path, config: ImportConfig) -> Ids:
    with path.open("rb") as file:
        begin = file.read(TAR_MAGIC[1] + len(TAR_MAGIC[0]))
    if path.suffix == TAR or begin[TAR_MAGIC[1] :] == TAR_MAGIC[0]:
        return open_tars(path, [path], config)
    if path.suffix == ".safetensors" or begin.startswith((NPY, ZIP)):
        return open_array(path, config)
    raise PipelineError(_raw_array(path, config.codebook_size))


def _raw_array(path: Path, codebook_size: int | None) -> str:
    """Says what a file without a header may be, and how to give it one."""
    kind = "uint16" if (codebook_size or 0) <= 1 << 16 else "uint32"
    read = f"np.memmap({str(path)!r}, '{kind}', 'r').reshape(-1, t, h, w)"
    return (
        f"{path} is no .npy: it begins with no header. If its {path.stat().st_size:,} bytes are a "
        "raw array, as np.memmap and tofile write it, say of which type and grid it is, for "
        f"example: python -c \"import numpy as np; np.save('ids.npy', {read})\" with numbers for "
        "t, h and w, and import ids.npy. Anything else, such as a pickle, is not read."
    )
