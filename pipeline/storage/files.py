"""Files that are whole or absent: atomic writes, hashes, locks."""

import codecs
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import PipelineError

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".partial"


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` survive a power cut; Windows cannot be asked to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; they promise nothing we could wait for.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the bytes of `path` are on the disk."""
    # Windows syncs only what may be written to.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Deletes a file or a whole folder; does nothing if there is none. Never follows a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it. Raises PipelineError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{error.filename} cannot be a folder: {error.strerror}; choose another place."
        ) from None


def contents(folder: Path) -> list[Path]:
    """Lists what a folder holds, apart from its lock and from what a kill left half-written."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name != ".lock" and not (path.name[0] == "." and TEMPORARY_SUFFIX in path.name)
    )


def keep_apart(out: Path | str, *inputs: Path | str | None, inside: bool = False) -> None:
    """Refuses an output that is, holds or lies inside what is read: writing would destroy it.

    `inside` allows an output inside a folder that is read, where that does no harm. Places of
    other machines, such as `s3://bucket/prefix`, are compared by name.
    """
    ours = _resolved(out)
    for path in inputs:
        if path is None:
            continue
        theirs = _resolved(path)
        if ours == theirs:
            how = "is"
        elif theirs.is_relative_to(ours):
            how = "holds"
        elif ours.is_relative_to(theirs) and not inside:
            how = "lies inside"
        else:
            continue
        raise PipelineError(f"--out {out} {how} {path}, which is read; choose another place.")


def _resolved(path: Path | str) -> PurePath:
    return path.resolve() if isinstance(path, Path) else PurePath(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was made there takes its place at the end.

    The suffix of `path` is kept, so that writers which look at it still work. On an error or a
    kill the old `path` stays as it was. A folder replaces only a path that is free or a folder.
    """
    make_folder(path.parent)
    if path.exists() and not path.is_file() and not path.is_dir():  # Such as /dev/null.
        raise PipelineError(f"{path} is no ordinary file; choose another place.")
    temporary = path.with_name(f".{path.stem}{TEMPORARY_SUFFIX}{path.suffix}")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            for file in (f for f in temporary.rglob("*") if f.is_file()):
                sync_file(file)
            for folder in (temporary, *(f for f in temporary.rglob("*") if f.is_dir())):
                sync_folder(folder)
            if path.is_dir():
                remove(path)
        else:
            if path.is_dir():
                raise PipelineError(f"{path} is a folder, not a file; choose another place.")
            sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        remove(temporary)


def printable(name: str) -> str:
    """Returns a name as it may stand in one line of a message or file, whoever made it up."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def describe_link(path: Path, folder: object) -> str:
    """Says that a link leads out of a folder, and what to do about it."""
    said = f"{printable(str(path))} is a link that leads out of {folder}"
    if path.resolve().parent.name == "blobs":  # What a file is called there is not its name.
        return (
            f"{said}, into the cache of the Hugging Face hub; download it into a folder of its "
            "own: `hf download … --local-dir FOLDER`."
        )
    return f"{said}; put a copy there."


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Reads a text file as UTF-8, or as its byte order mark says, whatever the locale.

    Raises UnicodeDecodeError if it is none, unless `errors` says what to do.
    """
    data = path.read_bytes()
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    codec = "utf-16" if data.startswith(marks) else "utf-8-sig"
    return io.TextIOWrapper(io.BytesIO(data), codec, errors).read()  # Any line ends become \n.


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves the old one untouched."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file, or leaves the old one untouched."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON."""
    write_bytes(path, to_json(value))


def to_json(value: object) -> bytes:
    """Returns `value` as indented JSON. Not-a-number is refused: JSON has no word for it."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path, error: type[PipelineError], what: str) -> dict[str, Any]:
    """Reads a JSON object. Raises `error`, naming `what` the file should be, when it is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} is missing, so {path.parent} is no {what}.") from None
    except NotADirectoryError:
        raise error(f"{path.parent} is a file, not a {what}.") from None
    return parse_json(data, path, error, what)


def parse_json(data: bytes, path: object, error: type[PipelineError], what: str) -> dict[str, Any]:
    """Reads the JSON object that `path` holds. Raises `error` when it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not the JSON of a {what}: {problem}.") from None
    if not isinstance(value, dict):
        raise error(f"{path} is not the JSON of a {what}: found a {type(value).__name__}.")
    return value


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(folder: Path, *, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Keeps every other process from writing to `folder`. The lock dies with its process.

    Yields a function that lets the other processes of this run in: those that ask for a `shared`
    lock. While one of them lives, no other run gets in, even when the first was killed. Windows
    has no lock that turns from exclusive to shared: others get none there, and a run that comes
    after the first was killed is not kept from writing beside those of them that still work.
    """
    make_folder(folder)
    path = folder / ".lock"
    taken = PipelineError(f"{folder} is being written by another process. Wait for it, or stop it.")
    with ExitStack() as held:
        if fcntl is None:
            from filelock import FileLock, Timeout

            try:
                held.enter_context(nullcontext() if shared else FileLock(path, timeout=0))
            except Timeout:
                raise taken from None
            yield lambda: None
            return
        # To read, too: network file systems give no shared lock of what can only be written.
        file = held.enter_context(path.open("a+b"))

        def take(kind: int) -> None:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise taken from None

        take(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield lambda: take(fcntl.LOCK_SH)
