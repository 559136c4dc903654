"""Objects of an S3 bucket: read and written whole, under a lock that is renewed."""

import io
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO

from pipeline.errors import StorageError

REMOTE = "s3://"
LOCK = ".lock"
RETRIES = 8
READ_AHEAD = 1 << 22
"""Bytes of an object that come at once: a tar of small files is looked through in few requests."""
MAX_GAP = 1 << 14
"""Bytes of an object between two parts that come along with them in one request."""
LEASE_SECONDS = 30.0
"""A run that has not renewed its lock on a bucket for so long is taken for dead."""


class Bucket:
    """Objects below a prefix of an S3 bucket, which replace one another whole.

    Endpoint, region and credentials come from the environment: AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID and so on. Every method raises StorageError, in one line, for what the
    server or the network refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise StorageError(f"{url} needs the extra `s3`: pip install 'mebt[s3]'.") from None
        self._errors = obstore.exceptions
        # Not obstore's `from_url`, which drops what follows a # or ?, and follows a .. upwards.
        bucket, *folders = url.removeprefix(REMOTE).rstrip("/").split("/")
        if not bucket or {"", ".", ".."} & set(folders):
            raise StorageError(f"{url} is no place: write s3://bucket/prefix.")
        self.root = url.rstrip("/")
        with self._one_line_errors("opened"):
            self._store = S3Store(
                bucket,
                prefix="/".join(folders) or None,
                client_options={"allow_http": True, "timeout": "600s"},  # As the endpoint says.
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=60)},
            )
        self._lock_lost = False

    def place(self, *names: str) -> str:
        """Returns the URL of an object."""
        return "/".join((self.root, *names))

    def read(self, name: str) -> bytes:
        """Returns a whole object. Raises FileNotFoundError if there is none."""
        with self._one_line_errors("read", name):
            return bytes(self._store.get(name).bytes())

    def read_parts(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Returns parts (first byte, bytes) of an object; neighbours come in one request.

        Neighbours have up to `MAX_GAP` bytes between them. Of its own accord obstore asks for up to
        a megabyte in between: of a shard with two windows that are wanted, often most of it.
        Raises FileNotFoundError if there is no such object, StorageError if it is shorter.
        """
        asked = [span for span in spans if span[1]]  # The server refuses those of no bytes.
        starts, lengths = [start for start, _ in asked], [length for _, length in asked]
        with self._one_line_errors("read", name):
            received = iter(
                self._store.get_ranges(name, starts=starts, lengths=lengths, coalesce=MAX_GAP)
            )
        parts = [bytes(next(received)) if length else b"" for _, length in spans]
        if any(len(part) < length for part, (_, length) in zip(parts, spans, strict=True)):
            raise StorageError(f"{self.place(name)} is shorter than it was; run it again.")
        return parts

    def below(self) -> list[str]:
        """Lists all objects below the prefix, in whatever folder."""
        with self._one_line_errors("listed"):
            return [item["path"] for chunk in self._store.list() for item in chunk]

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of all objects below the prefix, by name."""
        with self._one_line_errors("listed"):
            return {item["path"]: item["size"] for chunk in self._store.list() for item in chunk}

    def open(self, name: str) -> BinaryIO:
        """Opens an object to be read from any place in it. Raises as `read_parts` does."""
        with self._one_line_errors("read", name):
            size = self._store.head(name)["size"]
        return io.BufferedReader(_Object(self, name, size), READ_AHEAD)

    def stamp(self, name: str) -> list[Any]:
        """Returns what changes with an object: its bytes and its ETag. Raises as `read_parts`."""
        with self._one_line_errors("read", name):
            about = self._store.head(name)
        return [about["size"], about["e_tag"]]

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole object, or leaves the old one untouched."""
        self._refuse_if_lock_lost()
        self._put(name, data, mode="overwrite")

    def _refuse_if_lock_lost(self) -> None:
        if self._lock_lost:
            raise StorageError(
                f"{self.root} was taken over by another run, because this one had not renewed its "
                f"lock for {LEASE_SECONDS:.0f} seconds. What was finished is kept."
            )

    def names(self, folder: str = "") -> list[str]:
        """Lists what is directly below the prefix, or below a folder of it, apart from the lock."""
        with self._one_line_errors("listed", folder):
            listed: Any = self._store.list_with_delimiter(folder or None)
        paths = [*listed["common_prefixes"], *(item["path"] for item in listed["objects"])]
        return sorted({path.rpartition("/")[2] for path in paths} - {LOCK})

    def remove(self, name: str) -> None:
        """Deletes an object and all below it; does nothing if there is none."""
        with self._one_line_errors("deleted", name):
            below = [item["path"] for chunk in self._store.list(name) for item in chunk]
            for path in (*below, name):
                self._store.delete(path)

    def move(self, name: str, target: str) -> None:
        """Lets an object take another's place. Raises FileNotFoundError if there is none."""
        self._refuse_if_lock_lost()
        with self._one_line_errors("moved", name):
            self._store.copy(name, target)
            self._store.delete(name)

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[Callable[[], None]]:
        """Keeps other runs from writing, with an object that is renewed while this one lives.

        Who asks for a `shared` lock needs none: objects replace one another whole.
        """
        tag = None if shared else self._take_lock()
        if tag is None:
            yield lambda: None
            return
        over = threading.Event()
        renewing = threading.Thread(target=self._renew_lock, args=(tag, over), daemon=True)
        renewing.start()
        try:
            yield lambda: None
        finally:
            over.set()
            renewing.join()
            if not self._lock_lost:
                self.remove(LOCK)

    def _take_lock(self) -> str | None:
        """Returns the lock's tag, or None if the server cannot keep two runs apart."""
        try:
            return self._put(LOCK, _stamp(), mode="create")
        except self._errors.AlreadyExistsError:
            tag = self._lock_tag()
        except NotImplementedError:
            print(f"{self.root}: without a lock, as AWS_CONDITIONAL_PUT says", file=sys.stderr)
            return None
        said = f"{self.root} is locked; waiting {LEASE_SECONDS:.0f} seconds for a sign of life"
        print(said, file=sys.stderr, flush=True)
        time.sleep(LEASE_SECONDS)
        now = self._lock_tag()
        if now in (None, tag):  # It was given back, or its run is dead.
            try:
                return self._put(LOCK, _stamp(), mode={"e_tag": now} if now else "create")
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
                pass
        raise StorageError(
            f"{self.root} is being written by another process. Wait for it, or stop it."
        )

    def _lock_tag(self) -> str | None:
        try:
            with self._one_line_errors("read", LOCK):
                return self._store.head(LOCK)["e_tag"]
        except FileNotFoundError:
            return None

    def _renew_lock(self, tag: str, over: threading.Event) -> None:
        while not over.wait(LEASE_SECONDS / 5):
            try:
                tag = self._put(LOCK, _stamp(), mode={"e_tag": tag})
            except StorageError:
                continue  # The network may come back. Another run that came first is seen then.
            except self._errors.PreconditionError:
                self._lock_lost = True
                return

    def _put(self, name: str, data: bytes, *, mode: Any) -> str:
        with self._one_line_errors("written", name):
            try:
                # In one piece: the parts of an upload that is killed would stay, unseen.
                return str(self._store.put(name, data, mode=mode, use_multipart=False)["e_tag"])
            except FileNotFoundError:
                raise StorageError(f"{self.root} is in no bucket that exists.") from None

    @contextmanager
    def _one_line_errors(self, done: str, name: str = "") -> Iterator[None]:
        """Turns what the server or the network refuses into one line."""
        errors = self._errors
        try:
            yield
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise  # What a lock asks about.
        except (errors.BaseError, ValueError) as error:
            code = re.search(r"<Code>(\w+)</Code>", str(error))
            said = code[1] if code else str(error).splitlines()[0].rpartition(" - ")[2]
            raise StorageError(
                f"{self.place(name)} cannot be {done}: {said.rstrip('.')}; check the place, the "
                "network, AWS_ENDPOINT_URL, AWS_REGION and the AWS keys."
            ) from None


class _Object(io.RawIOBase):
    """An object as a file.

    obstore's own reader forgets at each seek what it has read ahead: it looks through a tar of 400
    small files in 401 requests, where this one takes one.
    """

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        self.bucket, self.name, self.size = bucket, name, size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = begin + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.position))
        if count:
            (buffer[:count],) = self.bucket.read_parts(self.name, [(self.position, count)])
            self.position += count
        return count


def _stamp() -> bytes:
    """Makes the content of a lock, another one each time: its tag is a hash of it."""
    return uuid.uuid4().hex.encode()
