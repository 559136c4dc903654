"""What `mebt train` draws on its way: the same for the same run, which is the same without."""

import errno
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.training.previews
from pipeline.errors import CheckpointError
from pipeline.storage.files import read_json, write_json
from pipeline.store.reader import TokenStore
from pipeline.training.previews import read_previews
from stages.previews import SAMPLES
from tests.helpers.small import Flow, content, make_tokenizer, run_command
from tests.stages.test_processes import SAME, srun
from tests.stages.test_train import assert_same_run

VALUES = ("num_samples", "draft_steps", "strategy", "schedule", "temperature", "revise_rounds")
EVERY_4 = ("--set", "train.preview_every=4")


def previews(run: Path) -> dict[str, bytes]:
    return content(run / "previews")


def run_where_nothing_fits(arguments: list[str], environment: dict[str, str]) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pipeline.training.previews.write_bytes = full
    run_command(arguments, environment)


def assert_last_preview_is_what_sample_draws(flow: Flow, out: str, *more: str) -> None:
    for key in VALUES:
        more += ("--set", f"sample.{key}={getattr(SAMPLES, key)}")
    flow.ok("sample", "--run", str(flow.root / out), *more, out=f"{out}-samples")
    *_, last = read_previews(flow.root / out).values()
    np.testing.assert_array_equal(last, TokenStore(flow.root / f"{out}-samples").read("sample"))


@pytest.mark.slow
def test_previews_change_nothing_in_a_run(flow: Flow) -> None:
    tokenizer = str(flow.root / "tokenizer.safetensors")
    flow.ok("train", "--set", "train.preview_every=0", out="without")
    said = flow.ok("train", "--set", "train.preview_every=1", "--tokenizer", tokenizer, out="with")
    assert re.search(r"6 steps \(previews: \d+\.\d% of their time\)", said)
    assert_same_run(flow.root / "with", flow.root / "without", "model.safetensors")
    assert list(read_previews(flow.root / "with")) == [0, 1, 2, 3, 4, 5, 6]
    assert not (flow.root / "without" / "previews").exists()


@pytest.mark.slow
def test_the_first_step_and_the_last_are_among_them(flow: Flow) -> None:
    flow.ok("train", *EVERY_4, out="drawn")
    found = read_previews(flow.root / "drawn")
    assert list(found) == [0, 4, 6]
    assert all(tokens.shape == (SAMPLES.num_samples, 2, 4, 4) for tokens in found.values())
    more = (*EVERY_4, "--init", str(flow.root / "drawn"), "--set", "train.max_steps=9")
    flow.ok("train", *more, out="further")
    assert list(read_previews(flow.root / "further")) == [6, 8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_last_preview_is_what_the_saved_model_draws(flow: Flow, precision: str) -> None:
    flow.ok("train", "--set", f"train.precision={precision}", out="drawn")
    more = ("--set", f"sample.precision={precision}")
    assert_last_preview_is_what_sample_draws(flow, "drawn", *more)


@pytest.mark.slow
def test_a_run_that_was_stopped_shows_the_same_byte_for_byte(flow: Flow) -> None:
    tokenizer = ("--tokenizer", str(flow.root / "tokenizer.safetensors"))
    more = ("--set", "train.preview_every=3", *tokenizer)
    flow.ok("train", *more, out="whole")
    wanted = previews(flow.root / "whole")
    # As after a kill at step 5: a preview of step 3, and the checkpoint of step 2.
    flow.ok("train", *more, "--set", "train.max_steps=2", out="killed")
    assert list(read_previews(flow.root / "killed")) == [0, 2]
    (flow.root / "killed/previews/tokens.parquet").write_bytes(wanted["tokens.parquet"])
    flow.ok("train", *more, out="killed")
    assert list(read_previews(flow.root / "killed")) == [0, 3, 6]
    (flow.root / "killed/previews/step-00000002.webp").unlink()
    assert previews(flow.root / "killed") == wanted


@pytest.mark.slow
def test_a_run_that_was_killed_at_any_moment_shows_the_same(flow: Flow) -> None:
    more = ("--set", "train.preview_every=3", "--set", "train.max_steps=40")
    more += ("--set", "train.checkpoint_every=5", "--set", "train.keep_checkpoints=1")
    flow.ok("train", *more, out="whole")
    for steps in (0, 9, 21):
        process = flow.fork("train", *more, out="killed")
        path = flow.root / "killed"
        while process.is_alive() and max(read_previews(path), default=-1) < steps:
            time.sleep(0.002)
        process.kill()
        process.join()
    flow.ok("train", *more, out="killed")
    assert previews(flow.root / "killed") == previews(flow.root / "whole")
    assert_same_run(flow.root / "killed", flow.root / "whole", "model.safetensors")


@pytest.mark.slow
def test_what_a_checkpoint_does_not_vouch_for_is_drawn_anew(flow: Flow) -> None:
    more = ("--set", "train.preview_every=1")
    flow.ok("train", *more, "--set", "train.max_steps=5", out="drawn")
    folder = flow.root / "drawn" / "checkpoints"
    (folder / "last").write_text("step-00000004\n")
    flow.ok("train", "--set", "train.preview_every=2", out="drawn")
    assert list(read_previews(flow.root / "drawn")) == [0, 1, 2, 3, 4, 6]


@pytest.mark.slow
def test_a_run_from_before_previews_goes_on_and_draws_from_there(flow: Flow) -> None:
    flow.ok("train", "--set", "train.preview_every=0", "--set", "train.max_steps=4", out="old")
    path = flow.root / "old" / "run.json"
    record = read_json(path, CheckpointError, "run")
    del record["config"]["preview_every"]
    write_json(path, record)
    flow.ok("train", *EVERY_4, out="old")
    assert list(read_previews(flow.root / "old")) == [4, 6]


@pytest.mark.slow
def test_overwriting_a_run_clears_its_previews(flow: Flow) -> None:
    tokenizer = ("--tokenizer", str(flow.root / "tokenizer.safetensors"))
    flow.ok("train", "--set", "train.preview_every=1", *tokenizer, out="drawn")
    more = ("--set", "train.seed=5", "--overwrite", *EVERY_4)
    flow.ok("train", *more, out="drawn")
    assert list(previews(flow.root / "drawn")) == ["tokens.parquet"]
    assert list(read_previews(flow.root / "drawn")) == [0, 4, 6]


@pytest.mark.slow
def test_a_tokenizer_makes_pictures_of_them(flow: Flow) -> None:
    tokenizer = ("--tokenizer", str(flow.root / "tokenizer.safetensors"))
    flow.ok("train", *EVERY_4, *tokenizer, out="drawn")
    pictures = sorted((flow.root / "drawn" / "previews").glob("*.webp"))
    assert [path.name for path in pictures] == [f"step-0000000{step}.webp" for step in (0, 4, 6)]
    with Image.open(pictures[-1]) as sheet:
        assert sheet.size == (SAMPLES.num_samples * (16 + 2), 16 + 2)
        assert sheet.n_frames == 4  # type: ignore[attr-defined]


def test_a_tokenizer_that_cannot_show_them_is_refused_at_the_start(flow: Flow) -> None:
    other = str(make_tokenizer(flow.root / "other.safetensors", seed=5))
    line = flow.refused("train", "--tokenizer", other, out="never")
    assert "was encoded with tokenizer" in line and "Give the tokenizer that made the" in line
    own = str(flow.root / "tokenizer.safetensors")
    more = ("--tokenizer", own, "--set", "train.preview_every=0")
    assert "has no effect if train.preview_every is 0" in flow.refused("train", *more, out="never")
    assert not (flow.root / "never").exists()


def test_damaged_previews_are_refused_by_name(flow: Flow) -> None:
    path = flow.root / "run" / "previews" / "tokens.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    more = ("--set", "train.max_steps=8")
    assert f"{path} is damaged" in flow.refused("train", *more)
    path.unlink()
    flow.ok("train", *more)
    assert list(read_previews(flow.root / "run")) == [8]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_draw_from_the_whole_model(flow: Flow, strategy: str) -> None:
    tokenizer = ("--tokenizer", str(flow.root / "tokenizer.safetensors"))
    more = (*SAME, *EVERY_4, *tokenizer)
    for task in srun(flow, *more, "--strategy", strategy, out="two"):
        task.join(100)
        assert task.exitcode == 0
    flow.ok("train", *more, out="one")
    one, two = (read_previews(flow.root / out) for out in ("one", "two"))
    assert list(two) == [0, 4, 6]
    np.testing.assert_array_equal(two[0], one[0])  # Before any rounding of gradients.
    assert_last_preview_is_what_sample_draws(flow, "two")


@pytest.mark.slow
def test_a_preview_that_cannot_be_written_stops_all_processes(flow: Flow) -> None:
    tasks = srun(flow, "--strategy", "ddp", out="two", run=run_where_nothing_fits)
    for task in tasks:
        task.join(60)
    assert [task.exitcode for task in tasks] == [1, 1]
