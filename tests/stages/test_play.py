"""`mebt play`: a model that draws while a browser watches."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mebt import MeBT, MeBTConfig, StateShape, save_model
from mebt.weights import MODEL_FILE
from pipeline.play.show import Show
from stages.__main__ import cli
from stages.play import PlayConfig, open_show
from tests.helpers.browser import Page, browser_page, find_browser
from tests.helpers.small import ROOT, make_tokenizer
from tokenizer import identity, load_tokenizer

GRID = (4, 4, 4)
FEW = PlayConfig(steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and the run of a model of it that has learned nothing."""
    made = tmp_path_factory.mktemp("play")
    path = make_tokenizer(made / "tokenizer.safetensors")
    make_tokenizer(made / "another.safetensors", seed=1)
    write_run(made / "run", identity(load_tokenizer(path)))
    return made


def write_run(run: Path, tokenizer: str, **more: Any) -> None:
    torch.manual_seed(2)
    layers = ("encode", "process", "decode", "refresh", "decode")
    sizes = {"width": 16, "num_heads": 2, "num_latents": 4, "codebook_size": 24}
    config = MeBTConfig(layers=layers, grid=GRID, **sizes, **more)
    model = MeBT(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # Else all tokens are as likely, at any temperature.
    run.mkdir()
    window = {"frames": "8", "stride": "1", "size": "16", "fps": "10"}
    save_model(run / MODEL_FILE, model, extra={"tokenizer": tokenizer, **window})


def frames(show: Show, seed: int, temperature: float = 1.0, *, pieces: int = 2) -> list[bytes]:
    name = show.begin({"seed": seed, "label": None})
    video = {**json_of(name), "action": None, "temperature": temperature}
    return [show.frames(video) for _ in range(pieces)]


def json_of(content: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(content)
    return found


def test_a_seed_and_a_temperature_say_what_is_shown(folder: Path) -> None:
    show = open_show(folder / "run", folder / "tokenizer.safetensors", FEW, device="cpu")
    assert {show.about[key] for key in ("width", "height")} == {16}
    assert (show.about["fps"], show.about["ahead"]) == (10, 2)
    first = frames(show, 1)
    assert [len(piece) for piece in first] == [2 * 16 * 16 * 3] * 2
    assert len(set(first)) == 2  # It moves.
    assert frames(show, 1) == first
    assert frames(show, 2) != first
    assert frames(show, 1, 0.25) != first


def test_steps_and_heat_of_a_draw_change_it(folder: Path) -> None:
    made = []
    for config in (
        FEW,
        replace(FEW, steps=3),
        replace(FEW, temperature=(0.5, 0.5)),
        replace(FEW, temperature=(1.0, 0.1)),
        replace(FEW, latent_frames=2),
    ):
        show = open_show(folder / "run", folder / "tokenizer.safetensors", config, device="cpu")
        made.append(b"".join(frames(show, 1)))
    assert len(made[-1]) == 2 * len(made[0])
    assert len(set(made)) == len(made)


def test_tokens_are_painted_without_a_tokenizer(folder: Path) -> None:
    show = open_show(folder / "run", None, FEW, device="cpu")
    assert (show.about["width"], show.about["fps"], show.about["ahead"]) == (32, 5, 1)
    first, second, *_ = frames(show, 1)
    pixels = np.frombuffer(first, np.uint8).reshape(4, 8, 4, 8, 3)
    assert (pixels == pixels[:, :1, :, :1]).all()
    assert first != second


STEERED = {
    "conditions": ("label", "action"),
    "labels": ("diving", "surfing"),
    "states": (StateShape(name="action", width=2, frames=2, mean=(0.0, 1.0), std=(1.0, 2.0)),),
}


def test_labels_and_actions_say_what_is_shown(folder: Path, tmp_path: Path) -> None:
    tokenizer = folder / "tokenizer.safetensors"
    write_run(tmp_path / "run", identity(load_tokenizer(tokenizer)), **STEERED)
    show = open_show(tmp_path / "run", tokenizer, FEW, device="cpu")
    assert show.about["labels"] == ("diving", "surfing")
    assert [a["keys"] for a in show.about["actions"]] == [
        *(("ArrowLeft", "a"), ("ArrowRight", "d"), ("ArrowUp", "w"), ("ArrowDown", "s"), ())
    ]
    assert show.about["rest"] == 4
    made = {}
    for label, action in ((None, None), (0, None), (1, None), (None, 0), (1, 0), (1, 1)):
        video = json_of(show.begin({"seed": 1, "label": label}))
        wish = {**video, "action": action, "temperature": 1}
        made[label, action] = b"".join(show.frames(wish) for _ in range(2))
    assert len(set(made.values())) == len(made)
    guided = replace(FEW, guidance=4.0)
    show = open_show(tmp_path / "run", tokenizer, guided, device="cpu")
    video = json_of(show.begin({"seed": 1, "label": 1}))
    wish = {**video, "action": 0, "temperature": 1}
    assert b"".join(show.frames(wish) for _ in range(2)) != made[1, 0]


def refused(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, ["play", *map(str, words)])
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    return line


def test_what_does_not_go_together_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    run = folder / "run"
    assert "model.safetensors is missing; train it with" in refused("--run", tmp_path)
    line = refused("--run", run, "--tokenizer", folder / "another.safetensors")
    assert "has tokenizer" in line and "Give the tokenizer of what the model" in line
    line = refused("--run", run, "--tokenizer", run / MODEL_FILE)
    assert "mebt fit-tokenizer" in line
    assert "--latent-frames 4: a window of" in refused("--run", run, "--latent-frames", "4")
    line = refused("--run", run, "--action", "action")
    assert "--action action: the model knows no states of frames." in line
    assert "the model knows no actions" in refused("--run", run, "--key", "a=1")
    assert "--guidance 3: " in refused("--run", run, "--guidance", "3")
    write_run(tmp_path / "steered", "", **STEERED)
    for key in ("", " ", "R"):
        line = refused("--run", tmp_path / "steered", "--key", f"{key}=0,1")
        assert line.startswith(f"Error: --key {key}=…: the page has that key itself")
    for words in (("--port", "65536"), ("--steps", "0"), ("--temperature", "1", "-1")):
        result = CliRunner().invoke(cli, ["play", "--run", str(run), *words])
        assert result.exit_code == 2, result.output


@contextmanager
def playing(*words: str | Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Starts the command in a process of its own; gives it and the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stages", "play", *map(str, words), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:[0-9]+/", line)
        yield process, url
    finally:
        process.kill()
        process.wait()


def end(process: "subprocess.Popen[str]", number: int) -> str:
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_while_it_draws(folder: Path) -> None:
    words = ("--run", folder / "run", "--tokenizer", folder / "tokenizer.safetensors")
    with playing(*words) as (process, url):
        request = urllib.request.Request(
            f"{url}begin", b'{"seed":1,"label":null}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json_of(answer.read())["video"]
        assert end(process, signal.SIGINT) == "closed\n"


def pixels(page: Page) -> str:
    data: str = page.value("document.getElementById('screen').toDataURL()")
    return data


def text(page: Page, name: str) -> str:
    found: str = page.value(f"document.getElementById('{name}').textContent")
    return found


SHOWN = "Number(document.getElementById('screen')?.dataset.shown)"


@pytest.mark.slow
def test_a_browser_shows_it_and_its_keyboard_works(folder: Path, tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None and not os.environ.get("CI"):
        pytest.skip("no Chromium is installed")
    assert browser is not None, "no Chromium is installed"
    words = ("--run", folder / "run", "--tokenizer", folder / "tokenizer.safetensors")
    with playing(*words) as (process, url), browser_page(browser, tmp_path / "browser") as page:
        page.call("Page.navigate", url=url)
        page.wait(f"{SHOWN} > 3")
        first = pixels(page)
        page.wait(f"{SHOWN} > 12")
        assert pixels(page) != first
        assert "frames/s" in text(page, "speed")

        page.key(" ")
        still, count = pixels(page), page.value(SHOWN)
        assert text(page, "toggle") == "Play"
        page.call(
            "Runtime.evaluate", expression="new Promise(r => setTimeout(r, 500))", awaitPromise=True
        )
        assert (pixels(page), page.value(SHOWN)) == (still, count)
        page.key(" ")
        page.wait(f"{SHOWN} > {count}")

        page.key("ArrowUp")
        assert text(page, "degrees") == "1.05"
        page.key("ArrowRight")
        assert page.value("document.getElementById('seed').value") == "1"
        page.wait(f"{SHOWN} > 0")
        page.key("r")
        page.wait(f"{SHOWN} > 3")
        assert page.problems == []

        assert end(process, signal.SIGTERM) == "closed\n"
        page.wait("!document.getElementById('note').hidden")
        said = ("The player does not answer; its terminal says why.", "the player is closed.")
        assert text(page, "note") in said
