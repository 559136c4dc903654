"""What `mebt check` foretells of a training, against what a run does."""

import pytest

from mebt import MeBTConfig
from mebt.objective import HELD_OUT_RATIOS
from pipeline.training.log import FILE, read_log
from pipeline.training.previews import read_previews
from pipeline.windows.plan import TokenizeConfig
from stages.mebt_task import TrainConfig
from stages.previews import SAMPLES
from stages.tokenizer_task import FitTokenizerConfig
from stages.trial import FORWARD, Timed, Trials
from tests.helpers.small import Flow
from tokenizer import VQGANConfig

SHAPE = MeBTConfig(codebook_size=13, grid=(2, 3, 5), width=8, num_heads=2, num_latents=7)


PREVIEW = SAMPLES.num_samples * SAMPLES.draft_steps / 4 / FORWARD
"""Steps on four windows that a preview takes."""


@pytest.fixture(autouse=True)
def steps_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.trial._time_training", lambda *given: Timed(1.0, 0.0))
    monkeypatch.setattr("stages.trial._time_fitting", lambda *given: Timed(1.0, 0.0))


def foretold(**values: int) -> float:
    trials = Trials("cpu")
    trials.training(SHAPE, TrainConfig(batch_size=4, validation_windows=4, **values), tokens_gb=0.0)
    seconds: float = trials.costs["train"]["seconds"]
    return seconds


@pytest.mark.parametrize(("every", "count"), [(0, 0), (3, 3), (4, 3), (6, 2), (7, 2)])
def test_the_first_preview_and_the_last_are_foretold(every: int, count: int) -> None:
    values = {"max_steps": 6, "validate_every": 6}
    without = foretold(preview_every=0, **values)
    assert foretold(preview_every=every, **values) == pytest.approx(without + count * PREVIEW)


@pytest.mark.parametrize(("every", "count"), [(3, 2), (4, 2), (6, 1), (7, 1)])
def test_the_last_validation_is_foretold(every: int, count: int) -> None:
    values = {"max_steps": 6, "validate_every": every}
    passes = count * len(HELD_OUT_RATIOS)
    assert foretold(preview_every=0, **values) == pytest.approx(6 + passes / FORWARD)
    config = FitTokenizerConfig(batch_size=4, validation_windows=12, **values)
    trials = Trials("cpu")
    trials.fitting(VQGANConfig(), config, TokenizeConfig(), num_frames=1)
    found = trials.costs["fit-tokenizer"]["seconds"]
    assert found == pytest.approx(6 + count * 3 / FORWARD)


@pytest.mark.slow
def test_a_run_draws_and_validates_as_often_as_was_foretold(flow: Flow) -> None:
    values = {"max_steps": 6, "validate_every": 4, "preview_every": 4}
    flow.ok("train", *(f"--set=train.{key}={value}" for key, value in values.items()), out="new")
    log = read_log(flow.root / "new" / FILE)
    validations = [line for line in log if line.get("split") == "validation"]
    seconds = 6 + len(validations) * len(HELD_OUT_RATIOS) / FORWARD
    seconds += len(read_previews(flow.root / "new")) * PREVIEW
    assert foretold(**values) == pytest.approx(seconds)
