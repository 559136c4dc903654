"""A server of this machine in the place of S3, which counts the bytes that it sends.

It is moto's, as in the tests: `pip install -e '.[dev]'`.
"""

import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline.storage.bucket import Bucket
from pipeline.storage.places import Folder


class Sent:
    """A WSGI application, and how much it has answered: bodies alone, without their headers."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.bytes = self.answers = 0

    def __call__(self, *request: Any) -> Iterator[bytes]:
        """Answers a request."""
        self.answers += 1
        for part in self.application(*request):
            self.bytes += len(part)
            yield part


@contextmanager
def stand_in() -> Iterator[tuple[str, Sent]]:
    """Starts a server with an empty bucket; yields the bucket's URL and what is sent.

    Meanwhile the environment leads there. No two servers have buckets of one name, as
    `pipeline.storage.places` keeps connections by name.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    sent = Sent(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, sent, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    name = f"bucket-{server.port}"
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    try:
        with patch.dict(os.environ, environment):
            place = f"{environment['AWS_ENDPOINT_URL']}/{name}"
            urllib.request.urlopen(urllib.request.Request(place, method="PUT"))
            yield f"s3://{name}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def upload(folder: Path, url: str) -> str:
    """Copies a folder to a bucket; returns the URL."""
    bucket = Bucket(url)
    for name in Folder(folder).sizes():
        bucket.write(name, (folder / name).read_bytes())
    return url
