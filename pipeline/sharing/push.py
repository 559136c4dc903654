"""Files -> a folder, a bucket or the hub: all of them or, after a stop, the rest."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ShareError
from pipeline.sharing.manifest import CARD, MANIFEST, Manifest, parse_manifest
from pipeline.storage.bucket import Bucket
from pipeline.storage.files import replacing, sha256_file
from pipeline.storage.hub import Hub, is_hub
from pipeline.storage.outputs import prepare_output
from pipeline.storage.places import Folder, Place, open_storage

WHAT = "pushed run"
LARGEST_MANIFEST = 4 * 2**20
"""Bytes of a manifest beyond which it is not read."""


@dataclass(frozen=True)
class Share:
    """What is to be pushed."""

    files: Mapping[str, Path]
    """Name there -> file here."""
    manifest: Manifest
    card: str


def open_share(place: Place) -> Hub | Folder | Bucket:
    """Opens where something is pushed to, or pulled from."""
    if is_hub(place):
        return Hub(str(place))
    storage = open_storage(place)
    assert not isinstance(storage, str)
    return storage


def push(share: Share, place: Place, *, overwrite: bool) -> int:
    """Writes what is missing at `place`; returns how many files that was, the card apart.

    In a folder or a bucket the manifest goes first, so that what a stop left unfinished is told
    from what is whole, and the same call goes on. Raises ShareError if something else is there,
    unless `overwrite` allows to replace what was pushed before; then every file is written.
    """
    storage = open_share(place)
    if isinstance(storage, Hub):
        return _to_hub(share, storage, overwrite=overwrite)
    with storage.lock():
        prepare_output(
            *(storage, MANIFEST, lambda: _differences(share, storage)),
            what=WHAT,
            error=ShareError,
            overwrite=overwrite,
        )
        sizes = storage.sizes()
        storage.write(MANIFEST, share.manifest.to_bytes())
        files = share.manifest.files.items()
        missing = [name for name, e in files if overwrite or sizes.get(name) != e.bytes]
        for name in missing:
            _write(storage, name, share)
        if CARD not in sizes or missing:
            storage.write(CARD, share.card.encode())
    return len(missing)


def read_manifest(storage: Hub | Folder | Bucket) -> Manifest:
    """Reads what a place says that it holds. Raises ShareError if that is not what we push."""
    where = f"{storage.root}/{MANIFEST}"
    try:
        with storage.open(MANIFEST) as file:
            data = file.read(LARGEST_MANIFEST + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ShareError(
            f"{where} does not exist, so nothing was pushed to there by `mebt push`."
        ) from None
    if len(data) > LARGEST_MANIFEST:
        raise ShareError(f"{where} has more than {LARGEST_MANIFEST:,} bytes; do not trust it.")
    return parse_manifest(data, where)


def _differences(share: Share, storage: Hub | Folder | Bucket) -> list[str]:
    return read_manifest(storage).differences(share.manifest)


def _write(storage: Folder | Bucket, name: str, share: Share) -> None:
    """Writes one file, and nothing else than what was listed."""
    path, entry = share.files[name], share.manifest.files[name]
    changed = ShareError(f"{path} changed while it was pushed; run it again.")
    if isinstance(storage, Bucket):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise changed
        storage.write(name, data)
        return
    with replacing(storage.place(name)) as temporary:
        shutil.copyfile(path, temporary)
        if sha256_file(temporary) != entry.sha256:
            raise changed


def _to_hub(share: Share, hub: Hub, *, overwrite: bool) -> int:
    there = hub.sizes()
    if MANIFEST in there:
        different = _differences(share, hub)
        if not different and not overwrite and there.keys() >= share.files.keys():
            return 0
        if different and not overwrite:
            raise ShareError(
                f"{hub.root} was made with {'; '.join(different)}; choose another --out, or give "
                "--overwrite."
            )
    elif there:
        raise ShareError(
            f"{hub.root} holds {min(there)} but no {MANIFEST}, so it is no {WHAT}; choose another "
            "--out."
        )
    files: dict[str, Path | bytes] = {
        MANIFEST: share.manifest.to_bytes(),
        CARD: share.card.encode(),
        **share.files,
    }
    hub.commit(files, sorted(there.keys() - files.keys()), "Push by mebt")
    return len(share.files)
