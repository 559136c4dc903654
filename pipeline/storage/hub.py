"""A repository of the Hugging Face hub: read at one commit, written in one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import StorageError

HUB = "hf://"
OWN = (".gitattributes",)
"""What the hub itself puts into a new repository."""


def is_hub(place: object) -> bool:
    """Says whether a place is a repository of the hub."""
    return isinstance(place, str) and place.startswith(HUB)


class Hub:
    """The files of the model repository `hf://owner/name`, as they were when it was opened.

    The token comes from `hf auth login` or HF_TOKEN. Every method raises StorageError, in one line,
    for what the server or the network refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            huggingface_hub = import_module("huggingface_hub")
        except ImportError:
            raise StorageError(f"{url} needs the extra `hf`: pip install 'mebt[hf]'.") from None
        self.root = url.rstrip("/")
        self.name = self.root.removeprefix(HUB)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", self.name, re.ASCII):
            raise StorageError(f"{url} is no place: write hf://owner/name.")
        self._hub, self._api = huggingface_hub, huggingface_hub.HfApi()
        self._sizes: dict[str, int] = {}
        self._commit: str | None = None
        with self._one_line_errors("read"):
            try:
                about = self._api.model_info(self.name, files_metadata=True)
            except huggingface_hub.errors.RepositoryNotFoundError:
                return  # Or one that the token may not see: then it cannot be created, either.
            self._commit = about.sha
            self._sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file, by name; nothing if there is no such repository."""
        return {name: size for name, size in self._sizes.items() if name not in OWN}

    def open(self, name: str) -> BinaryIO:
        """Opens a file, once it is in the hub's cache. Raises FileNotFoundError without one."""
        if name not in self._sizes:
            raise FileNotFoundError(f"{self.root}/{name} does not exist.")
        with self._one_line_errors("read"):
            path = self._hub.hf_hub_download(self.name, name, revision=self._commit)
        return Path(path).open("rb")

    def commit(self, files: Mapping[str, Path | bytes], removed: Sequence[str], said: str) -> None:
        """Adds and deletes files at once; a repository that it must create is private."""
        added = [
            self._hub.CommitOperationAdd(
                path_in_repo=name,
                path_or_fileobj=data if isinstance(data, bytes) else str(data),
            )
            for name, data in files.items()
        ]
        deleted = [self._hub.CommitOperationDelete(path_in_repo=name) for name in removed]
        with self._one_line_errors("written"):
            if self._commit is None:
                self._api.create_repo(self.name, private=True)
            self._api.create_commit(
                self.name, [*added, *deleted], commit_message=said, parent_commit=self._commit
            )

    @contextmanager
    def _one_line_errors(self, done: str) -> Iterator[None]:
        """Turns what the server or the network refuses into one line."""
        errors = self._hub.errors
        try:
            yield
        except (errors.HTTPError, OSError, ValueError) as error:
            if (
                isinstance(error, OSError)
                and error.errno
                and not isinstance(error, ConnectionError)
            ):
                raise  # Of this machine's disk.
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise StorageError(
                f"{self.root} cannot be {done}: {said}; check the name, the network, and who you "
                "are to the hub (`hf auth whoami`)."
            ) from None
