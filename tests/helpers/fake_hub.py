"""What of `huggingface_hub` is called, over a folder: names, arguments and errors as there."""

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class HTTPError(Exception):
    """As of httpx: no OSError."""


class HfHubHTTPError(HTTPError, OSError):
    """As the server says."""


class RepositoryNotFoundError(HfHubHTTPError):
    """No such repository."""


@dataclass
class FakeHub:
    """Repositories by name, each a list of commits, each a mapping of files."""

    root: Path
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    refusing: Exception | None = None
    """What every call raises."""

    def module(self) -> Any:
        module: Any = ModuleType("huggingface_hub")
        module.HfApi = lambda: self
        module.hf_hub_download = self.hf_hub_download
        module.CommitOperationAdd = _operation
        module.CommitOperationDelete = _operation
        module.errors = SimpleNamespace(
            HTTPError=HTTPError, RepositoryNotFoundError=RepositoryNotFoundError
        )
        return module

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name][-1]

    def model_info(self, repo_id: str, *, files_metadata: bool) -> Any:
        self._answer(repo_id)
        assert files_metadata
        siblings = [
            SimpleNamespace(rfilename=name, size=len(data))
            for name, data in self.files(repo_id).items()
        ]
        return SimpleNamespace(sha=str(len(self.repositories[repo_id]) - 1), siblings=siblings)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str) -> str:
        self._answer(repo_id)
        blob = self.root / repo_id / f"{revision}-blob" / filename
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(self.repositories[repo_id][int(revision)][filename])
        link = self.root / repo_id / revision / filename  # Its cache is made of links.
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        return str(link)

    def create_repo(self, repo_id: str, *, private: bool) -> None:
        if self.refusing:
            raise self.refusing
        assert repo_id not in self.repositories
        self.repositories[repo_id] = [{".gitattributes": b""}]
        if private:
            self.private.add(repo_id)

    def create_commit(
        self, repo_id: str, operations: list[Any], *, commit_message: str, parent_commit: str | None
    ) -> None:
        self._answer(repo_id)
        newest = str(len(self.repositories[repo_id]) - 1)
        assert commit_message
        assert parent_commit in (None, newest)
        files = dict(self.files(repo_id))
        for operation in operations:
            data = operation.path_or_fileobj
            if data is None:
                del files[operation.path_in_repo]
            else:
                data = data if isinstance(data, bytes) else Path(data).read_bytes()
                files[operation.path_in_repo] = data
        self.repositories[repo_id].append(files)

    def _answer(self, repo_id: str) -> None:
        if self.refusing:
            raise self.refusing
        if repo_id not in self.repositories:
            raise RepositoryNotFoundError(f"404 Client Error.\n\nNo {repo_id}.")


def _operation(*, path_in_repo: str, path_or_fileobj: bytes | str | None = None) -> Any:
    return SimpleNamespace(path_in_repo=path_in_repo, path_or_fileobj=path_or_fileobj)
