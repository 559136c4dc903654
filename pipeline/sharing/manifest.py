"""What is pushed: a list of files with their SHA-256, and the only names that may be in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import fingerprint
from pipeline.errors import ShareError
from pipeline.storage.files import parse_json, printable, sha256_file, to_json

MANIFEST, CARD = "manifest.json", "README.md"
FORMAT = "mebt-share-1"
STEP = r"step-[0-9]{8,18}"
MIB = 2**20
ANY = 2**50

LIMITS: Mapping[str, int] = {
    r"(model|tokenizer)\.safetensors": ANY,
    r"(run|metrics)\.json": 16 * MIB,
    r"metrics\.jsonl": 1024 * MIB,
    r"params\.yaml": MIB,
    r"sheet\.(webp|gif)": 1024 * MIB,
    r"previews/tokens\.parquet": 1024 * MIB,
    rf"previews/{STEP}\.webp": 1024 * MIB,
    r"checkpoints/last": 64,
    rf"checkpoints/{STEP}/meta\.json": 16 * MIB,
    rf"checkpoints/{STEP}/state\.safetensors": ANY,
}
"""Patterns of all names that are pushed, and the most bytes of such a file."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A file as it was pushed."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All files of what was pushed, the card apart: that may be edited where it lies."""

    files: Mapping[str, Entry]
    license: str | None = None

    def to_bytes(self) -> bytes:
        """Returns the file."""
        files = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        return to_json({"format": FORMAT, "license": self.license, "files": files})

    @property
    def fingerprint(self) -> str:
        """SHA-256 that says all of it: equal fingerprints, equal files."""
        files = {name: asdict(entry) for name, entry in self.files.items()}
        return fingerprint({"license": self.license, "files": files})

    def differences(self, wanted: "Manifest") -> list[str]:
        """Lists in which files another one differs, and whether in the licence."""
        found = []
        if self.license != wanted.license:
            found.append(f"licence {self.license}, not {wanted.license}")
        for name in sorted({*self.files, *wanted.files}):
            if name not in wanted.files:
                found.append(f"{name}, which is not there now")
            elif name not in self.files:
                found.append(f"no {name}")
            elif self.files[name] != wanted.files[name]:
                found.append(f"another {name}")
        return found


def list_files(files: Mapping[str, Path], license: str | None) -> Manifest:
    """Hashes files that are to be pushed by these names."""
    assert all(map(size_limit, files))
    entries = {name: Entry(path.stat().st_size, sha256_file(path)) for name, path in files.items()}
    return Manifest(entries, license)


def size_limit(name: str) -> int:
    """Returns the most bytes that a file of this name may have; 0 if nothing is called so."""
    return next((size for form, size in LIMITS.items() if re.fullmatch(form, name)), 0)


def parse_manifest(data: bytes, where: object) -> Manifest:
    """Reads a manifest of whoever wrote it. Raises ShareError unless it lists what we push."""
    found = parse_json(data, where, ShareError, "pushed run")
    if found.get("format") != FORMAT:
        raise ShareError(
            f"{where} has format {printable(repr(found.get('format')))}, but this version reads "
            f"{FORMAT!r}; look for a newer mebt."
        )
    license, listed = found.get("license"), found.get("files")
    known = license is None or (isinstance(license, str) and LICENSE.fullmatch(license))
    if found.keys() != {"format", "license", "files"} or not known or not isinstance(listed, dict):
        raise ShareError(f"{where} is damaged: it is not what `mebt push` writes.")
    entries = {name: _entry(name, value, where) for name, value in listed.items()}
    if not {"model.safetensors", "tokenizer.safetensors"} & entries.keys():
        raise ShareError(f"{where} lists neither a model nor a tokenizer.")
    return Manifest(entries, license)


def _entry(name: str, value: object, where: object) -> Entry:
    limit = size_limit(name)
    if not limit:
        raise ShareError(
            f"{where} lists {printable(repr(name))}, which no `mebt push` writes; do not trust it."
        )
    size, digest = (value.get("bytes"), value.get("sha256")) if isinstance(value, dict) else (0, 0)
    whole = isinstance(value, dict) and value.keys() == {"bytes", "sha256"}
    if not whole or type(size) is not int or not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ShareError(f"{where}: {name} is listed without its bytes and SHA-256.")
    if not 0 <= size <= limit:
        raise ShareError(f"{where}: {name} has {size:,} bytes, but at most {limit:,} make sense.")
    return Entry(size, str(digest))


def names_of(run: Path, *, checkpoint: str | None) -> Sequence[str]:
    """Names what there is to push of a run's folder, with a checkpoint if one is named."""
    fixed = ["model.safetensors", "tokenizer.safetensors", "run.json", "metrics.jsonl"]
    fixed += ["metrics.json", "params.yaml", "sheet.webp", "sheet.gif", "previews/tokens.parquet"]
    fixed += [f"previews/{path.name}" for path in sorted((run / "previews").glob("step-*.webp"))]
    if checkpoint:
        names = ("last", f"{checkpoint}/meta.json", f"{checkpoint}/state.safetensors")
        fixed += [f"checkpoints/{name}" for name in names]
    return [name for name in fixed if (run / name).is_file() and size_limit(name)]
