"""Serves the page to browsers of this machine, and to nobody else."""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from pipeline.errors import ConfigError
from pipeline.play.show import RefusedError, Show

ADDRESS = "127.0.0.1"
MAX_CONNECTIONS, MAX_BODY, IDLE_SECONDS = 32, 1024, 60
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/play.css": ("play.css", "text/css; charset=utf-8"),
    "/play.js": ("play.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PlayServer(ThreadingHTTPServer):
    """Answers on the loopback interface alone. One thread draws, whatever is asked at once."""

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = os.name == "posix"  # On Windows two could have the same port.

    def __init__(self, show: Show, port: int) -> None:
        """Raises ConfigError if the port cannot be had; 0 is any that is free."""
        self.show = show
        self.places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.timeout = 0.2  # Seconds: so soon `serve` sees that it is to stop.
        try:
            super().__init__((ADDRESS, port), PlayHandler)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: {error.strerror}; choose another one, or 0 for any that is free."
            ) from None
        self.painter = ThreadPoolExecutor(1, "painter")
        names = [ADDRESS, "localhost"]
        self.hosts = [f"{name}:{self.server_port}" for name in names]
        self.hosts += names if self.server_port == 80 else []

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def serve(self, stopped: Sequence[object]) -> None:
        """Answers until there is something in `stopped`; what is being drawn then is finished."""
        try:
            while not stopped:
                self.handle_request()
        finally:
            self.server_close()
            self.painter.shutdown(cancel_futures=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begins a thread for a connection, or closes it if there are too many."""
        if self.places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers what comes through one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows a bug; a browser that closed the connection is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()


class PlayHandler(BaseHTTPRequestHandler):
    """One connection: the page and what belongs to it, and what the page asks for."""

    server: PlayServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mebt", ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Sends the page, its files, or what it is to know of the model."""
        self._answer(self._look_up)

    def do_POST(self) -> None:
        """Begins a video, or sends the next frames of one."""
        self._answer(self._act)

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._check_sender()
            kind, content = make()
        except RefusedError as error:
            self.close_connection = True  # What else was sent is not read as a request.
            self._send(error.status, "text/plain; charset=utf-8", str(error).encode())
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _check_sender(self) -> None:
        """Refuses pages of other sites: they know neither this name nor come from here."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, f"ask {self.server.url} by this name.")
        if origins and origins != [f"http://{hosts[0].lower()}"]:
            raise RefusedError(HTTPStatus.FORBIDDEN, "pages of other sites get nothing here.")

    def _look_up(self) -> tuple[str, bytes]:
        if self.path == "/about":
            return "application/json", json.dumps(dict(self.server.show.about)).encode()
        if self.path not in FILES:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here.")
        name, kind = FILES[self.path]
        return kind, files("pipeline.play").joinpath(name).read_bytes()

    def _act(self) -> tuple[str, bytes]:
        actions = {
            "/begin": ("application/json", self.server.show.begin),
            "/frames": ("application/octet-stream", self.server.show.frames),
        }
        if self.path not in actions:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here.")
        kind, act = actions[self.path]
        asked = self._asked()
        try:
            painting = self.server.painter.submit(act, asked)
        except RuntimeError:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the player is closed.") from None
        return kind, painting.result()

    def _asked(self) -> Mapping[str, Any]:
        """Reads the JSON object that was sent."""
        if self.headers.get_content_type() != "application/json":  # Forms need not ask before.
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "say how long it is.")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send {MAX_BODY} bytes.")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "send a JSON object.")
        return asked

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        """Adds what holds for every answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of requests."""
