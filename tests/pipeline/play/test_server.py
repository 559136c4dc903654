"""The server of the page: what it answers, and to whom."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.play import server as server_module
from pipeline.play.server import HEADERS, PlayServer
from pipeline.play.show import MAX_SEED, MAX_VIDEOS, Show
from pipeline.play.video import Draw, Tokens, Video

JSON = {"Content-Type": "application/json"}
ASKED: dict[str, Any] = {"action": None, "temperature": 1}


def open_video(seed: int, label: int | None) -> Video:
    """A video each of whose frames is one pixel of its seed, label, action and temperature."""

    def draw(known: Tokens, by: Draw) -> Tokens:
        said = by.seed % 10 + 10 * (by.label or 0) + 100 * (by.actions[-1] or 0)
        return np.full((len(by.actions) - len(known), 1, 1), said + int(100 * by.temperature))

    return Video(
        draw,
        lambda tokens: tokens[..., None].astype(np.uint8).repeat(3, axis=3),
        (5, 1, 1),
        count=1,
        causal=True,
        seed=seed,
        label=label,
    )


@pytest.fixture
def server() -> Iterator[PlayServer]:
    about = {"labels": ["a", "b"], "actions": [{"name": "left", "keys": ["a"]}]}
    made = PlayServer(Show(open_video, about), 0)
    stopped: list[int] = []
    thread = threading.Thread(target=made.serve, args=(stopped,))
    thread.start()
    yield made
    stopped.append(1)
    thread.join()


def ask(
    server: PlayServer,
    method: str,
    path: str,
    body: object = None,
    *,
    headers: dict[str, str] | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, content, JSON if headers is None else headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def begin(server: PlayServer, seed: int = 0, label: int | None = None) -> str:
    response, content = ask(server, "POST", "/begin", {"seed": seed, "label": label})
    assert response.status == 200, content
    name: str = json.loads(content)["video"]
    return name


def test_the_page_comes_with_what_belongs_to_it_and_asks_nobody_else(server: PlayServer) -> None:
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/play.js", "text/javascript; charset=utf-8"),
        ("/play.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/about", "application/json"),
    ):
        response, content = ask(server, "GET", path)
        assert response.status == 200
        assert response.headers["Content-Type"] == kind
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
        assert response.headers["Server"].strip() == "mebt"
        assert b"//" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b"")


def test_a_video_is_drawn_by_seed_label_action_and_temperature(server: PlayServer) -> None:
    name = begin(server, seed=7, label=1)
    for action, temperature, value in ((None, 0.5, 67), (0, 1.25, 142), (None, 0, 17)):
        wish = {"video": name, "action": action, "temperature": temperature}
        response, content = ask(server, "POST", "/frames", wish)
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert content == bytes([value] * 3)
    for _ in range(3):
        _, content = ask(server, "POST", "/frames", {"video": name, **ASKED})
    assert content == b""  # Causal, five latent frames: it is over.


def test_of_many_videos_the_one_that_nobody_watches_is_dropped(server: PlayServer) -> None:
    names = [begin(server) for _ in range(MAX_VIDEOS)]
    assert ask(server, "POST", "/frames", {"video": names[0], **ASKED})[0].status == 200
    names.append(begin(server))
    assert len(set(names)) == MAX_VIDEOS + 1
    found = [ask(server, "POST", "/frames", {"video": n, **ASKED})[0].status for n in names]
    assert found == [200, 410, *[200] * (MAX_VIDEOS - 1)]


@pytest.mark.parametrize("path", ["/", "/about", "/frames"])
def test_other_names_and_pages_of_others_are_refused(server: PlayServer, path: str) -> None:
    method = "POST" if path == "/frames" else "GET"
    port = server.server_port
    ours = f"127.0.0.1:{port}"
    for headers in (
        {"Host": "example.org"},
        {"Host": f"example.org:{port}"},
        {"Host": f"127.0.0.1.example.org:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": f"127.0.0.1:{port + 1}"},
        {"Host": ""},
        {"Host": ours, "Origin": "http://example.org"},
        {"Host": ours, "Origin": "null"},
        {"Host": ours, "Origin": f"https://{ours}"},
        {"Host": ours, "Origin": f"http://localhost:{port}"},
    ):
        body = {"video": "x", **ASKED} if method == "POST" else None
        response, content = ask(server, method, path, body, headers={**JSON, **headers})
        assert response.status == 403, headers
        assert b"mebt" not in content
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        host = f"{name}:{port}"
        headers = {"Host": host, "Origin": f"http://{host.lower()}"}
        assert ask(server, "GET", "/about", headers=headers)[0].status == 200


def raw(server: PlayServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), 60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_requests_without_a_host_or_with_two_are_refused(server: PlayServer) -> None:
    host = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
    for head in (b"", host + host, host + b"Host: example.org\r\n"):
        assert raw(server, b"GET /about HTTP/1.1\r\n" + head + b"\r\n").startswith(b"HTTP/1.1 403")
    assert raw(server, b"GET /about HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 404) for path in ("/x", "/../show.py", "/server.py", "/?a", "/frames")),
        *(("POST", path, 404) for path in ("/", "/about", "/play.js")),
        *((method, "/", 501) for method in ("HEAD", "PUT", "DELETE", "OPTIONS", "TRACE")),
        ("GET", "http://example.org/", 403),
    ],
)
def test_there_are_no_other_paths_and_methods(
    server: PlayServer, method: str, path: str, status: int
) -> None:
    assert ask(server, method, path, {} if method == "POST" else None)[0].status == status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/begin", body) for body in ([], {}, b"{", b"\xff", b"[" * 1000, None, "a")),
        *(
            ("/begin", {"seed": seed, "label": None})
            for seed in (-1, MAX_SEED + 1, 1.5, True, "1", None)
        ),
        *(("/begin", {"seed": 1, "label": label}) for label in (2, -1, "a", True, 0.0)),
        ("/begin", {"seed": 1}),
        ("/begin", {"seed": 1, "label": None, "more": 1}),
        *(
            ("/frames", {"video": "x", "action": None, "temperature": heat})
            for heat in (-0.1, 4.1, True, "1", None, float("nan"), float("inf"))
        ),
        *(("/frames", {"video": "x", "action": a, "temperature": 1}) for a in (1, -1, "left")),
    ],
)
def test_what_makes_no_sense_is_refused(server: PlayServer, path: str, body: object) -> None:
    response, content = ask(server, "POST", path, body)
    assert response.status == 400
    assert response.headers["Connection"] == "close"
    assert len(content.splitlines()) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        ({**JSON, "Transfer-Encoding": "chunked"}, 411),
        ({**JSON, "Content-Length": "-1"}, 411),
        ({**JSON, "Content-Length": "1e3"}, 411),
        ({**JSON, "Content-Length": "1025"}, 413),
        ({**JSON, "Content-Length": "9" * 5000}, 413),
    ],
)
def test_what_is_too_long_or_sent_by_a_form_is_refused(
    server: PlayServer, headers: dict[str, str], status: int
) -> None:
    assert ask(server, "POST", "/begin", b"{}", headers=headers)[0].status == status


def test_of_too_many_connections_the_last_are_closed(
    server: PlayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.places = threading.BoundedSemaphore(2)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    host = ("127.0.0.1", server.server_port)
    held = [socket.create_connection(host, 60) for _ in range(2)]
    with socket.create_connection(host, 60) as third:
        assert third.recv(1) == b""
    for connection in held:
        connection.close()
    while not server.places.acquire(blocking=False):  # Until one of those has noticed.
        pass
    server.places.release()
    assert begin(server)


def test_a_port_that_is_taken_is_one_clear_line(server: PlayServer) -> None:
    wanted = rf"--port {server.server_port}: Address already in use; choose another one"
    with pytest.raises(ConfigError, match=wanted):
        PlayServer(server.show, server.server_port)


def test_it_listens_on_the_loopback_interface_alone(server: PlayServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
