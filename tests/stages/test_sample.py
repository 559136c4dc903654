"""`mebt sample`: a sample is a pure function of weights, values, seed and number."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mebt import load_model, model_metadata, save_model, weights_identity
from mebt.draft_revise import token_probabilities
from mebt.linear import round_weights
from pipeline import precision
from pipeline.metrics import frame_change
from pipeline.pixels import to_bytes
from pipeline.store.reader import TokenStore
from stages import sample_store
from stages.__main__ import cli
from tests.helpers.small import Flow, content
from tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]


def test_the_store_says_how_it_was_made(made: Flow) -> None:
    store = TokenStore(made.root / "samples")
    assert store.splits == ["sample"]
    assert store.num_windows("sample") == 34
    assert store.info.extra["model"] == weights_identity(made.root / "run" / "model.safetensors")
    assert store.info.extra["sample"]["draft_steps"] == 4
    assert store.info.tokenizer == TokenStore(made.root / "tokens").info.tokenizer
    tokens = store.read("sample").reshape(34, -1)
    assert len(np.unique(tokens, axis=0)) > 30


@pytest.mark.slow
def test_the_shipped_model_draws_fish_that_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # Where there is a params.yaml, and what is shipped.
    words = ["--run", "models/fish", "--out", str(tmp_path / "tokens")]
    result = CliRunner().invoke(cli, ["sample", *words, "--set", "sample.num_samples=4"])
    assert result.exit_code == 0, result.output
    tokens = TokenStore(tmp_path / "tokens").read("sample")
    assert tokens.shape == (4, 16, 8, 8)
    tokenizer = load_tokenizer(ROOT / "models/fish-64.safetensors")
    videos = to_bytes(tokenizer.decode(torch.from_numpy(tokens.astype(np.int64))))
    dark = (videos < 160).all(-1).mean((2, 3))  # Of each frame: of real clips up to a twentieth.
    assert 0.001 < dark.mean() < 0.06
    assert ((dark > 0.001).mean(1) > 0.2).all()
    assert 0.2 < frame_change(videos).mean() < 3


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5, 34])
def test_batch_size_changes_no_sample(flow: Flow, batch_size: int) -> None:
    flow.ok("sample", "--set", f"sample.batch_size={batch_size}", out="other")
    assert content(flow.root / "other") == content(flow.root / "samples")


def test_more_samples_begin_with_the_same_ones(flow: Flow) -> None:
    flow.ok("sample", "--set", "sample.num_samples=40", out="more")
    more = TokenStore(flow.root / "more").read("sample")
    np.testing.assert_array_equal(more[:34], TokenStore(flow.root / "samples").read("sample"))


def test_what_a_sample_takes_is_said(flow: Flow) -> None:
    more = ("--set", "sample.draft_steps=5", "--set", "sample.revise_groups=3")
    said = flow.ok("sample", *more, "--set", "sample.revise_rounds=2", out="counted")
    assert "34 samples; 34 drawn now, 11 model calls each" in said


def test_another_seed_gives_other_samples(flow: Flow) -> None:
    flow.ok("sample", "--set", "sample.seed=1", out="other")
    other = TokenStore(flow.root / "other").read("sample")
    assert (other != TokenStore(flow.root / "samples").read("sample")).mean() > 0.3


@pytest.mark.slow
def test_killed_and_run_again_the_samples_are_the_same(flow: Flow) -> None:
    process = flow.start("sample", "--set", "sample.batch_size=1", out="killed")
    manifest = flow.root / "killed" / "manifest"
    while process.poll() is None and not list(manifest.glob("*.parquet")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    flow.ok("sample", out="killed")
    assert content(flow.root / "killed") == content(flow.root / "samples")
    assert "nothing to do" in flow.ok("sample", out="killed")


@pytest.mark.slow
def test_two_processes_draw_the_same_samples_as_one(flow: Flow) -> None:
    two = ("--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    assert flow.start("sample", *two, out="two").wait(100) == 0
    assert content(flow.root / "two") == content(flow.root / "samples")


@pytest.mark.slow
def test_bfloat16_multiplies_and_keeps_probabilities_in_float32(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def spy(logits: torch.Tensor, **values: float | None) -> torch.Tensor:
        probs = token_probabilities(logits, **values)
        seen.add((logits.dtype, probs.dtype))
        return probs

    monkeypatch.setattr("mebt.draft_revise.token_probabilities", spy)
    half = ("--set", "sample.precision=bf16-mixed")
    assert "extra" in flow.refused("sample", *half)
    flow.ok("sample", *half, out="half")
    assert seen == {(torch.bfloat16, torch.float32)}
    flow.ok("sample", *half, "--set", "sample.batch_size=5", out="again")
    assert content(flow.root / "again") == content(flow.root / "half")


def test_auto_goes_on_in_the_precision_that_a_store_was_begun_in(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auto = ("--set", "sample.precision=auto", "--accelerator", "cpu")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : avx512f amx_bf16", "utf-8")
    said = flow.ok("sample", *auto)
    assert "sample.precision auto: 32-true, as it was begun" in said
    assert "nothing to do" in said
    flow.ok("sample", *auto, out="auto")
    assert TokenStore(flow.root / "auto").info.extra["sample"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_as_autocast_would_in_every_pass(
    flow: Flow, dtype: torch.dtype
) -> None:
    path = flow.root / "run" / "model.safetensors"
    model, rounded = load_model(path), load_model(path)
    round_weights(rounded, dtype)
    positions = torch.arange(model.config.num_tokens)[None]
    tokens = positions % model.config.codebook_size
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        expected, found = (x(tokens[:, :9], positions[:, :9], positions) for x in (model, rounded))
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    norms = {x.weight.dtype for x in rounded.modules() if isinstance(x, torch.nn.LayerNorm)}
    assert norms == {torch.float32}


COMPILED = ("--set", "sample.compile=true")


@pytest.mark.slow
def test_compiled_layers_draw_the_same_samples(flow: Flow) -> None:
    cache = flow.root / "cache"
    here = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    assert flow.start("sample", *COMPILED, out="compiled", **here).wait(300) == 0
    assert list(cache.rglob("*.cpp"))  # Compiled, and not just run as it is.
    drawn = [TokenStore(flow.root / name).read("sample") for name in ("compiled", "samples")]
    different = (drawn[0] != drawn[1]).any(axis=(1, 2, 3))
    assert different.mean() < 0.1  # Another rounding may choose another token, once in a while.


@pytest.mark.slow
def test_without_a_compiler_sampling_says_so_and_can_go_on_without(flow: Flow) -> None:
    missing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(flow.root / "cache")}
    assert flow.start("sample", *COMPILED, out="other", **missing).wait(300) == 1
    line = (flow.root / "errors.txt").read_text().splitlines()[-1]
    assert line.startswith("Error: torch.compile does not work here: ")
    assert line.endswith("Set sample.compile=false.")
    flow.ok("sample", out="other")
    assert content(flow.root / "other") == content(flow.root / "samples")


def test_a_draft_that_nothing_would_revise_is_refused(flow: Flow) -> None:
    draft = ("--draft", str(flow.root / "samples"), "--set", "sample.revise_rounds=0")
    said = flow.refused("sample", *draft, out="revised")
    assert "sample.revise_rounds is 0, so --draft would be left as it is" in said
    assert not (flow.root / "revised").exists()


def test_samples_of_another_sampler_are_not_gone_on_with(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_store, "SAMPLER", sample_store.SAMPLER + 1)
    assert "extra.sampler = 2, not 3" in flow.refused("sample", "--set", "sample.num_samples=36")


def test_other_values_are_refused(flow: Flow) -> None:
    assert "extra" in flow.refused("sample", "--set", "sample.temperature=0.5")
    flow.ok("train", "--set", "train.learning_rate=0.01", "--overwrite")
    assert "source" in flow.refused("sample")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "train it with"), ("empty", "not a readable"), ("cut", "not a readable")],
)
def test_a_model_that_cannot_be_read_is_named(flow: Flow, damage: str, message: str) -> None:
    path = flow.root / "run" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    line = flow.refused("sample", out="other")
    assert str(path) in line
    assert message in line


def test_top_k_beyond_the_codebook_is_refused(flow: Flow) -> None:
    assert "24 tokens" in flow.refused("sample", "--set", "sample.top_k=25", out="other")


def test_kept_frames_never_change_and_the_others_are_drawn(flow: Flow) -> None:
    few = ("--set", "sample.num_samples=6")
    kept = ("--given", str(flow.root / "tokens"), "--split", "test", "--set", "sample.keep=[1]")
    flow.ok("sample", *few, *kept, out="filled")
    real = TokenStore(flow.root / "tokens").read("test")[:6]
    filled = TokenStore(flow.root / "filled").read("sample")
    np.testing.assert_array_equal(filled[:, 1], real[:, 1])
    assert (filled[:, 0] != real[:, 0]).any(axis=(1, 2)).mean() > 0.5
    flow.ok("sample", *few, *kept, "--set", "sample.batch_size=4", out="again")
    assert content(flow.root / "again") == content(flow.root / "filled")


def test_a_given_draft_is_revised_and_nothing_else(flow: Flow) -> None:
    few = ("--set", "sample.num_samples=20")
    draft = ("--draft", str(flow.root / "samples"))
    before = TokenStore(flow.root / "samples").read("sample")[:20]
    flow.ok("sample", *few, *draft, "--set", "sample.keep=[0]", out="revised")
    revised = TokenStore(flow.root / "revised").read("sample")
    np.testing.assert_array_equal(revised[:, 0], before[:, 0])
    assert (revised[:, 1] != before[:, 1]).mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("total", "latent", "said"),
    [
        (2, 1, ""),
        (10, 5, ""),
        (1, 1, "sample.total_frames 1 makes 2: each latent frame is 2 of the video\n"),
        (9, 5, "sample.total_frames 9 makes 10: each latent frame is 2 of the video\n"),
    ],
)
def test_samples_have_as_many_frames_as_asked(
    flow: Flow, total: int, latent: int, said: str
) -> None:
    few = ("--set", "sample.num_samples=3", "--set", f"sample.total_frames={total}")
    assert ("total_frames" in (output := flow.ok("sample", *few, out="long"))) == bool(said)
    assert said in output
    store = TokenStore(flow.root / "long")
    assert store.grid == (latent, 4, 4)
    assert store.info.frames == 2 * latent
    assert store.info.extra["sample"]["total_frames"] == latent  # As in stores made before.
    flow.ok("sample", *few, "--set", "sample.batch_size=1", out="one")
    assert content(flow.root / "one") == content(flow.root / "long")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample.keep=[0]"], "sample.keep needs windows"),
        (["sample.total_frames=6", "sample.context_frames=2"], "no room for a new one"),
        (["sample.total_frames=6", "sample.redraw_frames=1"], "redraw_frames 1, but a window"),
        (["sample.keep=[2]", "--given"], "names frame 2, but there are 2"),
        (["sample.num_samples=3", "--given"], "--given has no effect"),
        (["sample.keep=[0]", "sample.num_samples=9999", "--given"], "each sample begins from"),
        (["sample.total_frames=8", "--draft"], "must be null to revise"),
    ],
)
def test_what_does_not_go_together_is_refused(flow: Flow, words: list[str], message: str) -> None:
    more = ["--set", "sample.num_samples=2"]
    for word in words:
        if word.startswith("--"):
            more += [word, str(flow.root / "tokens"), "--split", "test"]
        else:
            more += ["--set", word]
    assert message in flow.refused("sample", *more, out="other")
    assert not (flow.root / "other").exists()


def test_windows_of_another_codebook_are_refused(flow: Flow, tmp_path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((4, 2, 4, 4), np.int64))
    command = ["tokens", "import", str(tmp_path / "ids.npy"), "--codebook-size", "5"]
    assert CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "other")]).exit_code == 0
    more = ("--draft", str(tmp_path / "other"), "--set", "sample.num_samples=2")
    assert "has tokenizer None" in flow.refused("sample", *more, out="revised")


def with_window(flow: Flow, **window: str) -> None:
    """Lets the model say this of its window."""
    path = flow.root / "run" / "model.safetensors"
    metadata = {key: value for key, value in model_metadata(path).items() if key != "config"}
    save_model(path, load_model(path), extra={**metadata, **window})


def test_a_model_of_imported_tokens_counts_latent_frames_and_says_so(flow: Flow) -> None:
    with_window(flow, frames="", stride="", size="", fps="")
    few = ("--set", "sample.num_samples=2", "--set", "sample.total_frames=3")
    said = flow.ok("sample", *few, out="long")
    assert "sample.total_frames 3 counts latent frames" in said
    store = TokenStore(flow.root / "long")
    assert (store.grid[0], store.info.frames, store.info.fps) == (3, None, None)


@pytest.mark.parametrize(
    "window", [{"frames": "many"}, {"frames": "-4"}, {"fps": "nan"}, {"fps": "-1"}, {"size": "1e9"}]
)
def test_a_window_that_cannot_be_is_one_clear_line(flow: Flow, window: dict[str, str]) -> None:
    with_window(flow, **window)
    assert "model.safetensors: " in flow.refused("sample", out="other")


def test_help_says_what_is_counted() -> None:
    said = " ".join(CliRunner().invoke(cli, ["sample", "--help"]).output.split())
    assert "it counts frames of the video, and is raised to whole latent frames" in said
    assert "`sample.context_frames` and `sample.redraw_frames` count latent frames" in said
