"""`mebt sample`: a sample is a pure function of weights, values, seed and number."""

import time

import numpy as np
import pytest

from mebt import weights_identity
from pipeline.token_store import TokenStore
from tests.stages.small import Flow, content


def test_the_store_says_how_it_was_made(made: Flow) -> None:
    store = TokenStore(made.root / "samples")
    assert store.splits == ["sample"]
    assert store.num_windows("sample") == 34
    assert store.info.extra["model"] == weights_identity(made.root / "run" / "model.safetensors")
    assert store.info.extra["sample"]["draft_steps"] == 4
    assert store.info.tokenizer == TokenStore(made.root / "tokens").info.tokenizer
    tokens = store.read("sample").reshape(34, -1)
    assert len(np.unique(tokens, axis=0)) > 30


@pytest.mark.parametrize("batch_size", [1, 5, 34])
def test_batch_size_changes_no_sample(flow: Flow, batch_size: int) -> None:
    flow.ok("sample", "--set", f"sample.batch_size={batch_size}", out="other")
    assert content(flow.root / "other") == content(flow.root / "samples")


def test_more_samples_begin_with_the_same_ones(flow: Flow) -> None:
    flow.ok("sample", "--set", "sample.num_samples=40", out="more")
    more = TokenStore(flow.root / "more").read("sample")
    np.testing.assert_array_equal(more[:34], TokenStore(flow.root / "samples").read("sample"))


def test_another_seed_gives_other_samples(flow: Flow) -> None:
    flow.ok("sample", "--set", "sample.seed=1", out="other")
    other = TokenStore(flow.root / "other").read("sample")
    assert (other != TokenStore(flow.root / "samples").read("sample")).mean() > 0.3


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


def test_two_processes_draw_the_same_samples_as_one(flow: Flow) -> None:
    two = ("--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    assert flow.start("sample", *two, out="two").wait(100) == 0
    assert content(flow.root / "two") == content(flow.root / "samples")


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
