"""`mebt fit-tokenizer`: what it begins from."""

from pathlib import Path

import pytest
import torch

from tests.stages.small import Flow, make_tokenizer
from tests.stages.test_train import RESULTS, assert_same_run
from tokenizer import identity, load_tokenizer

STAGE = "fit-tokenizer"
ONE_STILL_STEP = (
    *("--set", "fit_tokenizer.max_steps=1", "--set", "fit_tokenizer.learning_rate=1.0e-9"),
    *("--set", "fit_tokenizer.restart_threshold=0.0"),
)


def result(flow: Flow, run: str) -> Path:
    return flow.root / run / RESULTS[STAGE]


def test_it_begins_from_the_weights_it_is_given(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    flow.ok(STAGE, *ONE_STILL_STEP, "--init", str(init), out="begun")
    before, after = load_tokenizer(init), load_tokenizer(result(flow, "begun"))
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), parameter, rtol=0, atol=1e-7)
    # A step moves the vectors that were chosen, and no other.
    moved = (after.codebook.embeddings - before.codebook.embeddings).abs().amax(1)
    scale = float(before.codebook.embeddings.abs().amax())
    assert float(moved.max()) < 0.5 * scale
    assert 0 < int((moved > 1e-5 * scale).sum()) < len(moved)


def test_a_stop_and_a_resume_change_nothing(flow: Flow) -> None:
    more = ("--init", str(flow.root / "tokenizer.safetensors"))
    flow.ok(STAGE, *more, out="whole")
    flow.ok(STAGE, *more, "--set", "fit_tokenizer.max_steps=2", out="resumed")
    flow.ok(STAGE, *more, out="resumed")
    assert_same_run(flow.root / "resumed", flow.root / "whole", RESULTS[STAGE])
    assert "nothing to do" in flow.ok(STAGE, *more, out="resumed")


def test_what_it_began_from_is_part_of_the_run(flow: Flow) -> None:
    first = flow.root / "tokenizer.safetensors"
    other = make_tokenizer(flow.root / "other.safetensors", seed=5)
    flow.ok(STAGE, *ONE_STILL_STEP, "--init", str(first), out="run-1")
    ids = [identity(load_tokenizer(path)) for path in (first, other)]
    for more, now in (("--init", str(other)), f"'{ids[1]}'"), ((), "None"):
        line = flow.refused(STAGE, *ONE_STILL_STEP, *more, out="run-1")
        assert f"init = '{ids[0]}', not {now}" in line


def test_a_tokenizer_of_another_shape_is_refused_naming_both(flow: Flow) -> None:
    init = flow.root / "tokenizer.safetensors"
    wider = ("--set", "tokenizer.width=8", "--set", "tokenizer.downsample=[2, 4, 2]")
    line = flow.refused(STAGE, "--init", str(init), *wider, out="wide")
    assert f"--init {init} has width 4, downsample [2, 4, 4]" in line
    assert "section tokenizer asks for width 8, downsample [2, 4, 2]" in line
    assert not (flow.root / "wide").exists()


@pytest.mark.parametrize("kept", [0, -9])
def test_a_damaged_file_is_one_clear_line(flow: Flow, kept: int) -> None:
    init = flow.root / "init.safetensors"
    init.write_bytes((flow.root / "tokenizer.safetensors").read_bytes()[:kept])
    line = flow.refused(STAGE, "--init", str(init), out="run-1")
    assert f"{init} is not a readable safetensors file" in line
