"""Every command of README and docs runs as printed, on footage that is not the demo's.

Each section is tried in an empty folder that holds what the section says is there. To be quick the
test appends `--set` values, and nothing else; what cannot be run here is named with the reason.
"""

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import av
import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.cosmos_files import cosmos_state, write_pair
from tests.helpers.foreign_files import (
    lightning_state,
    mebt_model,
    mebt_state,
    published_adamw,
    vqgan_model,
    vqgan_state,
    write_mebt,
    write_vqgan,
)
from tests.helpers.published_yaml import EXPERIMENTS
from tests.helpers.small import make_tokenizer, write_params
from tests.helpers.vidtok_files import write_vidtok
from tests.stages.test_lerobot import write_set
from tests.stages.test_shards import write_shard

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "models/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = ("mebt", "dvc", "git", "make", "python", "pip", "pytest", "pre-commit", "torchrun", "cp")
SMALL = [
    *("extract.size=32", "tokenize.size=32", "tokenizer.width=4"),
    *("tokenizer.codebook_size=16", "fit_tokenizer.max_steps=3", "fit_tokenizer.warmup_steps=0"),
    *("fit_tokenizer.validation_windows=2", "model.layers=[dense]", "model.width=16"),
    *("model.num_heads=2", "train.max_steps=4", "train.batch_size=2", "train.warmup_steps=0"),
    *("train.validation_windows=2", "sample.num_samples=3", "sample.draft_steps=4"),
    *("sample.revise_rounds=1", "sample.revise_groups=2", "evaluate.num_videos=2"),
]
OTHERWISE = {
    "run2": ["train.max_steps=6"],
    "continued": ["sample.num_samples=2"],
    "long/tokens": ["sample.total_frames=72", "sample.num_samples=1", "sample.draft_steps=1"],
}
"""--out -> what is appended besides."""

EIGHT, PUBLISHED = "needs so many GPUs", "a model of the published size"
SERVES = "serves until it is stopped; tests/stages/test_play.py"
FISH = "--run models/fish --tokenizer models/fish-64.safetensors"
NOT_RUN = {
    "mebt train --tokens tokens --out run --devices 8": EIGHT,
    "mebt train --tokens tokens --out run --devices 8 --strategy fsdp": EIGHT,
    "mebt train --params configs/ucf_16f.yaml --tokens tokens --out run --devices 4": PUBLISHED,
    "mebt sample --params configs/ucf_16f.yaml --run run --out samples/tokens": PUBLISHED,
    f"mebt play {FISH} --temperature 1 0.7 --open": SERVES,
}
"""Commands whose flags are looked at, no more."""
ELSEWHERE = {
    **{"make demo": "ten minutes", "make test": "runs this test", "make test-slow": "minutes"},
    **{"make faults": "ten minutes", "make bench": "hours; its parts are in test_benchmarks"},
    **{"python -m benchmarks.drift": "hours; on tiny data in test_drift"},
    **{"python -m benchmarks.tokenizers": "hours; on tiny data in test_tokenizer_table"},
    **{"python -m benchmarks": "the same", "python -m benchmarks.batches": "the same"},
    **{"python -m benchmarks.readers": "minutes; on tiny data in test_benchmarks"},
    **{"python -m benchmarks.seams": "its table is in test_editing"},
    **{"make quality": "hours; on tiny data in test_worlds"},
    **{"make steering": "hours; its parts are in test_steered_worlds, test_editing, test_drift"},
    **{"python -m tests.faults": "test_faults", "python -m tests.code_deps": "test_project"},
    **{"python -m tests.shipped": "test_project"},
    **{"pip install": "the network", "pre-commit install": "changes the checkout"},
    **{"pytest --golden": "test_golden and test_golden_sizes", "torchrun": "test_ranks"},
    **{"dvc": "test_dvc", "git": "test_dvc"},
    **{"cp decoder/tokenizer.safetensors": "the demo", "python fetch_footage.py": "the net"},
}
"""Beginnings of commands of other programs: where they are tried, or why they are not."""


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yields title and text of what stands below each `##`."""
    parts = re.split(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def commands(text: str) -> Iterator[str]:
    """Yields commands in the order of the text: of blocks, and between backticks."""
    block = r"^```\w*\n(?P<block>.*?)^```$"
    for match in re.finditer(rf"{block}|(?<!`)`(?P<code>[^`]+)`", text, re.DOTALL | re.MULTILINE):
        lines = [match["code"]]
        if match["block"] is not None:
            lines = match["block"].replace("\\\n", " ").splitlines()
        for line in lines:
            words = " ".join(line.split()).partition(" # ")[0].strip()
            if words.split(" ")[0] in PROGRAMS and " " in words:
                yield words


def found_command(words: list[str]) -> click.Command | None:
    """Returns the click command that the words name; None for a group alone."""
    command: click.Command | None = cli.get_command(None, words[1])  # type: ignore[arg-type]
    assert command is not None, f"there is no `mebt {words[1]}`"
    if isinstance(command, click.Group):
        rest = [word for word in words[2:] if not word.startswith("-")]
        command = command.commands[rest[0]] if rest else None
    return command


def is_complete(line: str) -> bool:
    """Says whether a command could be typed as it stands; looks at its flags in any case."""
    words = shlex.split(line)
    command = found_command(words)
    if command is None:
        return False
    options = [param for param in command.params if isinstance(param, click.Option)]
    known = {"--help", *(flag for option in options for flag in option.opts)}
    assert {word for word in words if word.startswith("--")} <= known, line
    blank = "…" in line or "[DATA_PATH]" in line
    return not blank and all({*o.opts} & {*words} for o in options if o.required)


def all_commands() -> list[tuple[str, str, str]]:
    return [
        (page.name, title, line)
        for page in PAGES
        for title, text in sections(page)
        for line in commands(text)
    ]


def test_every_command_is_tried_or_named_with_the_reason() -> None:
    lines = [line for _, _, line in all_commands()]
    assert len(lines) > 60
    for line in lines:
        if line.startswith("mebt "):
            is_complete(line)
        else:
            assert line.startswith(tuple(ELSEWHERE)), f"nobody tries `{line}`"
    unused = [line for line in NOT_RUN if line not in lines]
    unused += [start for start in ELSEWHERE if not any(x.startswith(start) for x in lines)]
    assert not unused


def quarters(number: int) -> NDArray[np.uint8]:
    """Red, green, blue and white, with a grey bar that moves down the middle."""
    frame = np.empty((240, 320, 3), np.uint8)
    frame[:120, :160], frame[:120, 160:] = (220, 30, 30), (30, 200, 30)
    frame[120:, :160], frame[120:, 160:] = (30, 30, 220), (230, 230, 230)
    frame[number % 220 : number % 220 + 20, 150:170] = 128
    return frame


def write_video(path: Path, *, rate: int, count: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "14"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(quarters(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def still(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(quarters(number)).save(file, "PNG")
    return file.getvalue()


def run(line: str) -> str:
    """Runs a command of the page, with what makes it quick behind it."""
    words = shlex.split(line)[1:]
    command = found_command(["mebt", *words])
    out = words[words.index("--out") + 1] if "--out" in words else ""
    if any("--set" in param.opts for param in command.params):  # type: ignore[union-attr]
        for value in [*SMALL, *OTHERWISE.get(out, [])]:
            words += ["--set", value]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, f"{line}\n{result.output}{result.exception!r}"
    return result.output


def run_section(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs every command of a text in a folder; returns them."""
    monkeypatch.chdir(folder)
    lines = [line for line in commands(text) if line.startswith("mebt ")]
    lines = [line for line in lines if is_complete(line) and line not in NOT_RUN]
    for line in lines:
        run(line)
    return lines


def corners(path: Path) -> NDArray[np.int64]:
    """The colours in the middle of the four quarters, row by row."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    near, far = len(pixels) // 4, 3 * len(pixels) // 4
    return pixels[[near, near, far, far], [near, far, near, far]]


@pytest.mark.slow
def test_the_commands_for_own_videos_keep_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "my_videos/film.mp4", rate=24, count=144)
    write_video(tmp_path / "my_videos/phone.mp4", rate=30, count=180)
    write_set(tmp_path / "robot-set")
    film = (tmp_path / "my_videos/film.mp4").read_bytes()
    for name in ("00000", "00001"):
        write_shard(tmp_path / f"shards/{name}.tar", {"__key__": name, "mp4": film, "txt": b"film"})
    ids = np.random.default_rng(0).integers(8192, size=(8, 4, 4, 4), dtype=np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    page = dict(sections(ROOT / "README.md"))
    lines = run_section(page["Your own videos"], tmp_path, monkeypatch)
    assert lines[:2] == [
        "mebt init --videos my_videos",
        "mebt extract --videos my_videos --out frames",
    ]
    more = (ROOT / "docs/own-videos.md").read_text("utf-8")
    assert len(run_section(more, tmp_path, monkeypatch)) > 10
    extracted = sorted((tmp_path / "frames").rglob("*.png"))
    counts = {n: len([p for p in extracted if p.stem.startswith(n)]) for n in ("film_", "phone_")}
    assert counts["film_"] == 144  # Every frame: 24 a second is the rate that both can have.
    assert abs(counts["phone_"] - 6 * 24) <= 1
    expected = [[220, 30, 30], [30, 200, 30], [30, 30, 220], [230, 230, 230]]
    for path in extracted[::40]:
        assert np.abs(corners(path) - expected).max() < 20, path
    videos = sorted((tmp_path / "samples/videos").glob("*.mp4"))
    assert len(videos) == 3
    for path in videos:
        with av.open(str(path)) as container:
            shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
        assert shapes == [(32, 32, 3)] * 16
    assert "<img" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_commands_for_published_files_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EXPERIMENTS["ucf_16f"].write(tmp_path / "theirs.yaml")
    write_vqgan(tmp_path / "vqgan.ckpt", vqgan_state(vqgan_model()))
    model = mebt_model()
    optimizer = published_adamw(model, learning_rate=1e-3, weight_decay=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [lightning_state(model, optimizer)]
    write_mebt(tmp_path / "mebt.ckpt", mebt_state(model, vqgan_model()), optimizer_states=states)
    write_pair(tmp_path, *cosmos_state())
    name = "vidtok_fsq_causal_488_32768"
    write_vidtok(tmp_path / f"{name}.ckpt", tmp_path / f"{name}.yaml")
    params = ("--params", str(write_params(tmp_path / "small.yaml")))
    words = ("extract", "--synthetic", "4", "--out", str(tmp_path / "frames"), *params)
    assert CliRunner().invoke(cli, words).exit_code == 0
    page = (ROOT / "docs/published.md").read_text("utf-8")
    lines = run_section(page, tmp_path, monkeypatch)
    assert len(lines) == 8


@pytest.mark.slow
def test_the_commands_that_edit_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.mp4", rate=24, count=30)
    write_video(tmp_path / "other.mp4", rate=24, count=9)
    mask = np.zeros((240, 320), np.uint8)
    mask[100:150, 90:130] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    write_params(tmp_path / "params.yaml")
    make_tokenizer(tmp_path / "tokenizer.safetensors")
    monkeypatch.chdir(tmp_path)
    for line in (
        "mebt extract --videos . --out frames",
        "mebt tokenize --frames frames --tokenizer tokenizer.safetensors --out tokens",
        "mebt train --tokens tokens --out run",
    ):
        run(line)
    page = dict(sections(ROOT / "docs/steering.md"))
    assert len(run_section(page["Editing"], tmp_path, monkeypatch)) == 7
    outs = ("continued", "before", "between", "inpainted", "masked", "wider", "thinned")
    assert all((tmp_path / out / "sheet.webp").exists() for out in outs)


@pytest.mark.slow
def test_the_commands_that_steer_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["video,frame,action.0,action.1"]
    for number, label in enumerate(("surfing", "diving", "surfing")):
        split = "test" if number == 2 else "train"
        folder = tmp_path / "frames" / split / label / f"clip{number}"
        folder.mkdir(parents=True)
        for frame in range(20):
            (folder / f"clip{number}_{frame:05d}.png").write_bytes(still(frame + 40 * number))
            rows.append(f"{label}/clip{number},{frame},{frame},{-number}")
    (tmp_path / "actions.csv").write_text("\n".join(rows))
    moves = [f"{frame},{frame % 3},0.5" for frame in range(16)]
    (tmp_path / "moves.csv").write_text("\n".join(["frame,action.0,action.1", *moves]))
    make_tokenizer(tmp_path / "tokenizer.safetensors")
    write_params(tmp_path / "params.yaml")
    page = dict(sections(ROOT / "docs/steering.md"))
    told = page["Labels and actions"] + page["Guidance"]
    assert len(run_section(told, tmp_path, monkeypatch)) >= 4
    store = TokenStore(tmp_path / "surfing")
    assert store.plan("sample")["label"].to_pylist() == ["surfing"] * 3


@pytest.mark.slow
def test_the_other_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for title, text in sections(ROOT / "README.md"):
        if title != "Your own videos" and list(commands(text)):
            folder = tmp_path / title
            folder.mkdir()
            if title == "Try it":  # What is shipped lies in the checkout.
                (folder / "models").symlink_to(ROOT / "models")
            run_section(text, folder, monkeypatch)
    made = sorted(path.name for path in (tmp_path / "The flow").iterdir())
    assert made == ["params.schema.json", "params.yaml"]
