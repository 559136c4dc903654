"""`mebt check`: what there is and what it will take, before anything is made."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.store.reader import TokenStore
from pipeline.video.synthetic import moving_shapes
from pipeline.video.writer import write_mp4
from stages.__main__ import cli
from tests.helpers.small import ROOT, Flow, content
from tests.stages.test_shards import film, write_shard
from tests.stages.test_shards import image as picture_file
from tokenizer import VQGAN, VQGANConfig, save_tokenizer

SMALL = {
    **{"tokenizer.width": 4, "model.layers": "[dense]", "model.width": 16},
    **{"train.batch_size": 2, "fit_tokenizer.batch_size": 2},
}
SET_SMALL = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.trial.MOST", 1)
    monkeypatch.setattr("stages.trial.LEAST", 1)


def run(flow: Flow, *words: str | Path) -> Result:
    params = flow.root / "params.yaml"
    return CliRunner().invoke(cli, ["check", *map(str, words), "--params", str(params)])


def found(flow: Flow, *words: str | Path) -> tuple[dict[str, Any], str]:
    out = flow.root.parent / "check.json"
    result = run(flow, *words, "--json", out)
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(out.read_text())
    return record, result.output


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_frames_with_a_tokenizer_tell_windows_and_bytes_of_the_store(flow: Flow) -> None:
    before = content(flow.root)
    tokenizer = ("--tokenizer", flow.root / "tokenizer.safetensors")
    record, said = found(flow, "--frames", flow.root / "frames", *tokenizer)
    assert content(flow.root) == before
    store = TokenStore(flow.root / "tokens")
    assert record["windows"]["by_hop"]["2"] == store.info.counts
    assert not record["store"]["at_most"]
    assert record["store"]["bytes"] == pytest.approx(stored_bytes(store.root), rel=0.1)
    shards = sum(store.part(*shard)["bytes"] for shard in store.info.shards())
    assert record["store"]["bytes_of_tokens"] == pytest.approx(shards, rel=0.1)
    assert list(record["costs"]) == ["tokenize", "train"]
    assert all(cost["seconds"] > 0 for cost in record["costs"].values())
    assert "  2: " in said and "<- tokenize.hop" in said
    assert said.splitlines()[-1].startswith("  --set ")
    # What the tokenizer has decided is no matter of choice, nor are windows that it refuses.
    keys = {item["key"] for item in record["params"]}
    assert keys and not any(key.startswith(("tokenizer.", "fit_tokenizer.")) for key in keys)


def test_windows_that_the_tokenizer_refuses_are_not_advised(flow: Flow) -> None:
    torch.manual_seed(0)
    fields = {"codebook_size": 24, "embedding_dim": 4, "width": 4, "norm": "batch"}
    causal = VQGAN(VQGANConfig(**fields, downsample=(4, 4, 4), causal=True)).eval()
    save_tokenizer(flow.root / "causal.safetensors", causal)
    tokenizer = ("--tokenizer", flow.root / "causal.safetensors")
    record, _ = found(
        flow, "--frames", flow.root / "frames", *tokenizer, "--set", "tokenize.frames=5"
    )
    assert not {"tokenize.frames", "tokenize.size"} & {item["key"] for item in record["params"]}


def test_images_in_tars_are_counted_and_measured(flow: Flow, tmp_path: Path) -> None:
    images = {f"{n:05d}.png": picture_file(n) for n in range(8)}
    keys = ("one", "two", "three", "four", "five")
    write_shard(tmp_path / "a.tar", *({"__key__": key, **images} for key in keys))
    record, said = found(flow, "--videos", tmp_path / "a.tar")
    assert record["footage"]["videos"] == 5
    assert record["footage"]["sizes"] == [[64, 64]]
    assert "5 videos" in said


@pytest.mark.parametrize("given", ["shards", "shards/{a,b}.tar"])
def test_tars_are_checked_without_a_params_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_shard(tmp_path / f"shards/{name}.tar", {"__key__": name, "mkv": film(frames=20)})
    result = CliRunner().invoke(cli, ["check", "--videos", given, *SET_SMALL])
    assert result.exit_code == 0, result.output
    assert "2 videos" in result.output and "what mebt init would choose" in result.output
    result = CliRunner().invoke(cli, ["init", "--videos", "shards"])
    assert result.exit_code == 1
    assert "such as a.tar); tars are not looked into, so leave out --videos." in result.output


def test_frames_that_are_not_square_are_advised_their_shape(flow: Flow, tmp_path: Path) -> None:
    images: dict[str, bytes] = {}
    for number in range(8):
        file = io.BytesIO()
        Image.new("RGB", (48, 32), (9 * number, 0, 0)).save(file, "PNG")
        images[f"{number:05d}.png"] = file.getvalue()
    write_shard(tmp_path / "a.tar", {"__key__": "one", **images})

    def sizes(asked: str) -> tuple[list[object], str]:
        record, said = found(
            flow, "--frames", tmp_path / "a.tar", "--set", f"tokenize.size={asked}"
        )
        return [p["value"] for p in record["params"] if p["key"] == "tokenize.size"], said

    assert sizes("[16,24]")[0] == [[32, 48]]
    advised, said = sizes("[32,48]")
    assert not advised and "enlarged" not in said
    advised, said = sizes("[64,96]")
    assert advised == [[32, 48]]
    assert "frames of 1 of 1 videos are enlarged to tokenize.size (64, 96)\n" in said


def test_broken_tars_are_named_and_skipped_when_asked(flow: Flow, tmp_path: Path) -> None:
    films = ({"__key__": name, "mkv": film(frames=20)} for name in "abcde")
    write_shard(tmp_path / "shards" / "a.tar", *films)
    (tmp_path / "shards" / "b.tar").write_bytes(b"no tar" * 200)
    result = run(flow, "--videos", tmp_path / "shards")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert "b.tar is damaged, or no uncompressed tar" in line
    assert line.endswith("To go on without it, give --skip-broken.")
    record, said = found(flow, "--videos", tmp_path / "shards", "--skip-broken")
    assert record["footage"]["videos"] == 5
    assert "1 broken tar is used up to the damage: b.tar\n" in said
    assert run(flow, "--tokens", flow.root / "tokens", "--skip-broken").exit_code == 2


def test_another_hop_is_foretold_as_tokenize_makes_it(flow: Flow) -> None:
    more = ("--set", "tokenize.hop=3")
    tokenizer = ("--tokenizer", flow.root / "tokenizer.safetensors")
    record, _ = found(flow, "--frames", flow.root / "frames", *tokenizer, *more)
    flow.ok("tokenize", *more, out="other")
    store = TokenStore(flow.root / "other")
    assert record["windows"]["by_hop"]["3"] == store.info.counts
    assert record["store"]["bytes"] == pytest.approx(stored_bytes(store.root), rel=0.1)


def test_without_a_tokenizer_the_most_is_said(flow: Flow) -> None:
    record, said = found(flow, "--frames", flow.root / "frames")
    assert record["store"]["at_most"]
    assert record["store"]["bytes"] >= stored_bytes(flow.root / "tokens")
    assert list(record["costs"]) == ["fit-tokenizer", "tokenize", "train"]
    assert "token store: at most" in said


def write_videos(folder: Path) -> Path:
    for seed in range(3):
        frames = np.stack(list(moving_shapes(40 + seed, 32, seed=seed)))
        write_mp4(folder / f"v{seed}.mp4", frames, fps=25)
    (folder / "copy.mp4").write_bytes((folder / "v1.mp4").read_bytes())
    write_mp4(folder / "still.mp4", np.full((40, 32, 32, 3), 90, np.uint8), fps=25)
    (folder / "notes.txt").write_text("no video")
    return folder


def test_videos_are_foretold_as_extract_and_tokenize_make_them(flow: Flow) -> None:
    videos = write_videos(flow.root / "mine")
    tokenizer = ("--tokenizer", flow.root / "tokenizer.safetensors")
    record, said = found(flow, "--videos", videos, *tokenizer)
    words = ["extract", "--videos", videos, "--out", flow.root / "made"]
    words += ["--params", flow.root / "params.yaml"]
    assert CliRunner().invoke(cli, list(map(str, words))).exit_code == 0
    words = flow.arguments("tokenize", out="other")
    words[words.index("--frames") + 1] = str(flow.root / "made")
    assert CliRunner().invoke(cli, words).exit_code == 0
    store = TokenStore(flow.root / "other")
    assert record["windows"]["by_hop"]["2"] == store.info.counts
    assert record["store"]["bytes"] == pytest.approx(stored_bytes(store.root), rel=0.1)
    assert list(record["costs"]) == ["extract", "tokenize", "train"]
    about = record["footage"]
    assert [name for name, _ in about["rejected"]] == ["notes.txt"]
    assert about["look_still"] == ["still"]
    assert about["look_alike"] == [["copy", "v1"]]
    for line in ("rejected notes.txt: ", "1 of 5 look still", "1 of 5 look like an earlier one"):
        assert line in said


def test_values_are_those_of_init_without_a_params_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_videos(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["check", "--videos", str(videos), *SET_SMALL])
    assert result.exit_code == 0, result.output
    assert "(values: what mebt init would choose)" in result.output
    assert "--set tokenizer.width" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    result = CliRunner().invoke(cli, ["check", "--videos", str(videos), "--params", "mine.yaml"])
    assert result.exit_code == 1
    assert "mine.yaml does not exist; write one with `mebt init`" in result.output


@pytest.mark.parametrize("given", ["--frames frames", "--tokens tokens", "--frames images.tar"])
def test_frames_and_tokens_need_no_params_file(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (flow.root / "params.yaml").unlink()
    monkeypatch.chdir(flow.root)
    images = {f"{n:05d}.png": picture_file(n) for n in range(9)}
    write_shard(Path("images.tar"), *({"__key__": key, **images} for key in "ab"))
    words = [*given.split(), *SET_SMALL, "--set", "train.batch_size=3", "--json", "check.json"]
    result = CliRunner().invoke(cli, ["check", *words])
    assert result.exit_code == 0, result.output
    record = json.loads(Path("check.json").read_text())
    assert record["values"] == "what mebt init would choose"
    if given == "--frames images.tar":  # Of 9 frames each.
        assert record["windows"]["frames"] == 8
    # What was chosen is not advised, but what was set to something else.
    assert [item["now"] for item in record["params"] if "batch" in item["key"]][-1:] == [3]
    assert not {"tokenize.frames", "tokenize.size"} & {item["key"] for item in record["params"]}


def test_tokens_are_read_and_what_repeats_is_told(flow: Flow) -> None:
    record, said = found(flow, "--tokens", flow.root / "tokens")
    store = TokenStore(flow.root / "tokens")
    about = record["tokens"]
    assert about["windows"] == store.info.counts
    rows = {
        split: store.read(split).reshape(store.num_windows(split), -1) for split in store.splits
    }
    different = {split: {row.tobytes() for row in found} for split, found in rows.items()}
    repeated = sum(len(rows[split]) - len(different[split]) for split in rows)
    assert about["repeated_windows"] == repeated
    assert about["in_train_and_test"] == len(different["train"] & different["test"])
    tokens = np.concatenate([store.read(split) for split in store.splits])
    assert about["still_windows"] == sum((window == window[:1]).all() for window in tokens)
    assert list(record["costs"]) == ["train"]
    assert "every shard is whole" in said


def test_wrong_usage_and_bad_input_are_one_line(flow: Flow) -> None:
    frames, tokens = flow.root / "frames", flow.root / "tokens"
    assert run(flow).exit_code == 2
    assert run(flow, "--videos", "").exit_code == 2
    assert run(flow, "--frames", frames, "--tokens", tokens).exit_code == 2
    tokenizer = ("--tokenizer", flow.root / "tokenizer.safetensors")
    assert run(flow, "--tokens", tokens, *tokenizer).exit_code == 2
    shard = next((tokens / "train.zarr" / "c").rglob("0"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    for words, what in (
        (("--videos", flow.root / "nowhere"), "nowhere does not exist."),
        (("--videos", frames / "extract.json"), "is neither a folder nor a .tar"),
        (("--frames", tokens), "holds no video"),
        (("--tokens", frames), "so"),
        (("--tokens", tokens), "train.zarr"),
        (("--frames", frames, "--set", "tokenize.frames=3"), "a clip of 3 frames does not divide"),
        (("--frames", frames, "--set", "tokenize.frames=400"), "no window fits"),
        (("--frames", frames, "--set", "model.layers=[refresh]"), "model: the last layer"),
        (("--frames", frames, "--json", frames), "which is read; choose another place"),
    ):
        result = run(flow, *words)
        assert result.exit_code == 1, (words, result.output)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert what in line


def test_what_cannot_be_timed_is_said(flow: Flow) -> None:
    more = ("--set", "fit_tokenizer.perceptual_weight=1.0")
    record, said = found(flow, "--frames", flow.root / "frames", *more)
    assert "fit-tokenizer" not in record["costs"]
    assert "not measured: fit-tokenizer: its perceptual_weight needs weights of LPIPS" in said


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mebt', '--help']\n"
        "try: from stages.__main__ import cli; cli()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "\n  check " in result.stdout and "\n  reconstruct " in result.stdout
