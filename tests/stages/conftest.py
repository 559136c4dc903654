"""One small flow per test process, and copies of it to break."""

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pipeline.storage import bucket as bucket_module
from pipeline.storage.bucket import Bucket
from tests.helpers.small import Flow


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """The flow up to its samples; only read it."""
    flow = Flow(tmp_path_factory.mktemp("flow"))
    for stage in ("extract", "tokenize", "train", "sample"):
        flow.ok(stage)
    return flow


@pytest.fixture
def flow(made: Flow, tmp_path: Path) -> Flow:
    """A copy of the flow to change at will."""
    return made.copy(tmp_path / "flow")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty place in a bucket, and the environment that leads there."""
    for name, value in (
        ("ENDPOINT_URL", server),
        ("ACCESS_KEY_ID", "key"),
        ("SECRET_ACCESS_KEY", "secret"),
        ("REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(bucket_module, "LEASE_SECONDS", 0.5)
    urllib.request.urlopen(f"{server}/moto-api/reset", data=b"")
    urllib.request.urlopen(urllib.request.Request(f"{server}/tokens", method="PUT"))
    return Bucket("s3://tokens/some/store")
