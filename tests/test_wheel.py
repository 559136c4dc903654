"""The wheel: what it packs, and what it does where no checkout is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import code_deps
from tests.helpers.small import ROOT, Flow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the code as it stands here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in code_deps.CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", ".")
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_holds_every_file_of_the_code(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {file for name in code_deps.CODE for file in (ROOT / name).rglob("*") if file.is_file()}
    kept = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert packed == kept
    assert {"pipeline/report/report.html.j2", "pipeline/report/style.css"} <= packed


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and what it needs from this one.

    A folder that a .pth file names is searched, but not for .pth files: the editable installation
    that may be there is none here.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "--isolated")
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet")
    subprocess.run([*pip, "install", *options, wheel], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-I", "-c", where], check=True, stdout=subprocess.PIPE)
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(packages.stdout.decode().strip(), "needed.pth").write_text("\n".join(here))
    return python


@pytest.mark.slow
def test_a_wheel_draws_videos_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    tokenizer = ("--tokenizer", f"{ROOT}/models/fish-64.safetensors")
    few = ("--set", "sample.num_samples=1", "--set", "sample.draft_steps=2")
    for words in (
        ("--help",),
        ("init",),
        ("sample", "--run", f"{ROOT}/models/fish", "--out", "tokens", *few),
        ("decode", "--tokens", "tokens", "--out", "videos", *tokenizer),
    ):
        arguments = [installed.with_name("mebt"), *words]
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(arguments, cwd=tmp_path, env=ours, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "videos" / "sheet.webp").stat().st_size > 1000


CALLED = """
import sys, threading
from pathlib import Path
import mebt, pipeline, stages, tokenizer, weights
for module in (mebt, pipeline, stages, tokenizer, weights):
    assert Path(module.__file__).is_relative_to(sys.prefix), module.__file__
from stages.__main__ import cli
assert not {"webdataset", "numcodecs"} & sys.modules.keys()
called = set()
def note(frame, event, _):
    if event == "call" and frame.f_back:
        called.add(tuple(f.f_globals.get("__name__") for f in (frame.f_back, frame)))
threading.setprofile(note)
sys.setprofile(note)
cli(sys.argv[3:], standalone_mode=False)
sys.setprofile(None)
assert tuple(sys.argv[1:3]) in called, sorted(map(str, called))
"""
"""Runs a command in an environment of its own, where one module has to call another."""


@pytest.mark.slow
def test_a_wheel_reads_tars_by_webdataset_and_shards_by_numcodecs(
    installed: Path, tmp_path: Path
) -> None:
    flow = Flow(tmp_path)
    for caller, library, words in (
        ("storage.tars", "webdataset.writer", flow.arguments("extract", "--format", "webdataset")),
        ("storage.tars", "webdataset.tariterators", flow.arguments("tokenize")),
        # Training reads its batches.
        ("store.shards", "numcodecs.checksum32", flow.arguments("train")),
    ):
        result = subprocess.run(
            [installed, "-I", "-c", CALLED, f"pipeline.{caller}", library, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert list((tmp_path / "frames").glob("*.tar"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    zstd = "from pipeline.store import shards; print(shards.Zstd.__module__)"
    made = subprocess.run([installed, "-I", "-c", zstd], check=True, stdout=subprocess.PIPE)
    assert made.stdout.split() == [b"numcodecs.zstd"]
