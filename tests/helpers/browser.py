"""A real browser without a window, driven through its DevTools protocol: no package is needed."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120
"""Seconds until what a page is to become is taken for never."""


def find_browser() -> str | None:
    """Returns the path of an installed browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A page of a browser: commands go through one pipe, answers and events come by another."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers = commands, answers
        self.numbers = itertools.count(1)
        self.problems: list[str] = []
        """What the console and the log say is wrong."""
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol; notes what the browser complains of meanwhile."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self._read()).get("id") != number:
            self._note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        is_problem = (
            method == "Runtime.exceptionThrown"
            or (method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"))
            or (method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"))
        )
        if is_problem:
            self.problems.append(json.dumps(params))

    def value(self, expression: str) -> Any:
        """Returns what JavaScript is worth in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Waits until JavaScript is worth something true; returns that."""
        end = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"never {expression}; {self.problems}"
            time.sleep(0.02)
        return value

    def key(self, key: str, *kinds: str) -> None:
        """Presses a key and lets it go, or does only one of `keyDown` and `keyUp`."""
        for kind in kinds or ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path: Path) -> None:
        """Writes what the page looks like, a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser_page(browser: str, folder: Path) -> Iterator[Page]:
    """Starts a browser whose files are in `folder`, and ends it."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def place_pipes() -> None:  # Where the browser looks for them; both might be in the way.
        first, second = os.dup2(to_browser, 100), os.dup2(from_browser, 101)
        os.dup2(first, 3)
        os.dup2(second, 4)

    options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    options += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--window-size=900,900"]
    process = subprocess.Popen(
        [browser, *options],
        preexec_fn=place_pipes,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(commands, "wb") as written, os.fdopen(answers, "rb") as read:
            page = Page(written, read)
            yield page
            page.session = None
            page.call("Browser.close")
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
