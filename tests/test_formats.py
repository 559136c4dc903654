"""`docs/formats.md`: one table, a row for each layout, of commands that all run on such files."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.store.reader import TokenStore
from tests.helpers.cosmos_files import CONSTANTS, cosmos_state, write_pair, write_script
from tests.helpers.foreign_files import vqgan_model, vqgan_state, write_vqgan
from tests.helpers.small import content, make_tokenizer, write_params
from tests.helpers.token_files import draw_ids, npy, write_folder, write_tar, write_v1, write_v2
from tests.helpers.vidtok_files import write_vidtok
from tests.stages.test_lerobot import write_set
from tests.stages.test_shards import write_shard
from tests.test_readme import ROOT, commands, is_complete, run, still, write_video
from tokenizer import VQGAN, VQGANConfig, identity, load_tokenizer, save_tokenizer

PAGE = (ROOT / "docs/formats.md").read_text("utf-8")
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
READ, WRITTEN = 2, 3
"""Columns."""


def write_footage(root: Path) -> None:
    """Writes videos and frames in each layout that is read, and labels and states of them."""
    write_video(root / "my_videos/film.mp4", rate=24, count=40)
    film = (root / "my_videos/film.mp4").read_bytes()
    write_set(root / "robot-set")
    images = {f"{number}.png": still(number) for number in range(20)}
    for name, label in (("0", "surfing"), ("1", "archery")):
        write_shard(root / f"shards/{name}.tar", {"__key__": "a", "mp4": film, "txt": b"film"})
        sample = {"__key__": f"clip-{name}", **images, "cls": label.encode(), "txt": b"film"}
        write_shard(root / f"image-shards/{name}.tar", sample)
        for folder in (root / f"folders/{name}", root / f"sorted/{label}/{name}"):
            folder.mkdir(parents=True)
            for image, data in images.items():
                (folder / image).write_bytes(data)
    make_tokenizer(root / "tokenizer.safetensors")
    write_params(root / "params.yaml")


def write_ids(root: Path) -> None:
    """Writes ids in each layout that is read, and labels and states of them."""
    ids = {name: draw_ids(20, 2, 3, codes=8192) for name in ("a.npy", "b.npy", "c.safetensors")}
    write_folder(root / "videos", ids)
    digits = {f"{n}.npy": draw_ids(4, 2, 3, 6, codes=5, seed=n) for n in range(3)}
    write_folder(root / "digits", digits)
    np.save(root / "video.npy", ids["a.npy"])
    np.save(root / "ids.npy", ids["a.npy"].reshape(5, 4, 2, 3))
    fields = {"codebook_size": 8192, "embedding_dim": 4, "width": 4, "norm": "batch"}
    model = VQGAN(VQGANConfig(**fields, downsample=(2, 4, 4)))
    save_tokenizer(root / "tokenizer-8192.safetensors", model.eval())
    beside = {"a.json": b'{"label": "surfing", "caption": "film"}', "a.npy": npy(ids["a.npy"])}
    write_tar(root / "clips/0.tar", beside)
    for split, length in (("train", 500), ("val", 240)):
        write_v1(root / f"{split}_v1.1", [draw_ids(length, 2, 2)])
        write_v2(root / f"{split}_v2.0", [[40, 20]], flat=split == "val")
    (root / "labels.csv").write_text("video,label\na.npy,surfing\nb.npy,archery\n")
    (root / "states.csv").write_text("video,frame,turn\na.npy,0,0.5\na.npy,1,-0.5\n")


def write_tokenizers(root: Path) -> None:
    """Writes published tokenizers in each layout that is read."""
    state, idle = cosmos_state()
    write_pair(root, state, idle)
    whole = {**state, **CONSTANTS["encoder"], **CONSTANTS["decoder"]}
    write_script(root / "autoencoder.jit", whole, idle)
    torch.save(state, root / "cosmos.pt")
    write_vidtok(root / "vidtok.ckpt", root / "vidtok.yaml")
    write_vqgan(root / "vqgan.ckpt", vqgan_state(vqgan_model()))


def in_order(lines: list[str]) -> list[str]:
    """Sorts commands so that each comes after those that make what it reads."""
    made_by = {word: line for line in lines for word in [out_of(line)] if word}
    sorted_lines: dict[str, None] = {}

    def add(line: str) -> None:
        for word in shlex.split(line):
            if made_by.get(word, line) != line:
                add(made_by[word])
        sorted_lines[line] = None

    for line in lines:
        add(line)
    return list(sorted_lines)


def out_of(line: str) -> str:
    words = shlex.split(line)
    return words[words.index("--out") + 1] if "--out" in words else ""


def test_it_is_one_table_of_commands_that_could_be_typed() -> None:
    head, rule, *rows = ROWS
    assert [cell.strip() for cell in head] == ["layout", "told by", "read by", "written by"]
    assert [row for row in ROWS if set(row[0]) == {"-"}] == [rule]
    groups = [row for row in rows if row[0].strip().startswith("**")]
    assert [row[0].strip(" *") for row in groups] == [
        *("Videos", "Frames", "Tokens", "Labels, captions and states", "Tokenizers")
    ]
    for row in (row for row in rows if row not in groups):
        written = [cell.strip() for cell in row[READ:] if cell.strip()]
        assert written and len(row) == 4, row
        for cell in written:
            (line,) = commands(cell)
            assert cell == f"`{line}`" and line.startswith("mebt ") and is_complete(line), cell


def test_each_published_kind_of_tokenizer_has_a_row() -> None:
    read = [row[0] + row[READ] for row in ROWS if "mebt import-tokenizer" in row[READ]]
    for kind in ("Cosmos DV", "VidTok", "TATS"):
        assert any(kind in row for row in read)
    assert all("--out" in row for row in read) and len(read) == 5


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write in (write_footage, write_ids, write_tokenizers):
        write(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in dict.fromkeys(commands(PAGE)) if is_complete(line)]
    table = {line for row in ROWS for cell in row for line in commands(cell)}
    assert table <= set(lines)
    for line in in_order(lines):
        run(line)
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), np.load(tmp_path / "ids.npy"))
    for line in lines:
        if out := out_of(line):
            assert (tmp_path / out).exists(), line
    for one, other in (("tokens", "copy"), ("frame-tokens", "tar-tokens")):
        assert content(tmp_path / one) == content(tmp_path / other)
    names = ("cosmos", "cosmos-whole", "cosmos-state")
    models = [load_tokenizer(tmp_path / f"{name}.safetensors") for name in names]
    assert len({identity(model) for model in models}) == 1
    for name, labels in (
        ("labelled-images", ["archery", "surfing"]),
        ("labelled-clips", ["surfing"]),
        ("sorted-tokens", ["archery", "surfing"]),
    ):
        assert TokenStore(tmp_path / name).label_names == labels
    for name in ("captioned", "captioned-images", "captioned-clips"):
        assert set(TokenStore(tmp_path / name).plan()["caption"].to_pylist()) == {"film"}
