"""What a forecast says, and the params that it ends with."""

from pathlib import Path

import pytest

from pipeline.errors import FrameError
from pipeline.forecast.record import advice
from pipeline.forecast.told import duration, size, told
from pipeline.params.choose import (
    Choice,
    Machine,
    fitted_to_frames,
    fitted_to_machine,
)
from pipeline.params.survey import Seen

SMALL = Machine(cores=2, memory_gb=8.0)
SEEN = [Seen(Path("a"), 50, 90, 0.0, 40)]


def test_values_for_frames_leave_extract_alone() -> None:
    choice = fitted_to_frames(SEEN, {"train": [40, 9, 300], "test": [12, 12]}, SMALL)
    assert choice.values["tokenize"]["size"] == 48  # Whole tokens of 8 pixels.
    assert choice.values["tokenize"]["frames"] == 8  # What fits the 12 frames of the test split.
    assert not [key for key in choice.reasons if key.startswith("extract.")]
    with pytest.raises(FrameError, match="videos of 3 frames or fewer"):
        fitted_to_frames(SEEN, {"train": [40], "test": [3]}, SMALL)


def test_values_for_tokens_are_of_the_training_alone() -> None:
    small, large = (fitted_to_machine(Machine(8, 64.0, gpu)) for gpu in (None, 80.0))
    assert {*small.reasons} == {"train.batch_size", "train.memory_gb"}
    assert small.values["train"]["max_steps"] < large.values["train"]["max_steps"]


def test_only_what_differs_is_advised() -> None:
    choice = Choice({"train": {"batch_size": 32, "memory_gb": 1.0}})
    choice.set("there is room.", train__batch_size=32, train__memory_gb=1.0)
    now = {"train": {"batch_size": 16, "memory_gb": 1.0}}
    found = advice(choice, now)
    assert found == [
        {"key": "train.batch_size", "value": 32, "now": 16, "reason": "there is room."}
    ]


def test_params_come_last_and_can_be_pasted() -> None:
    params = [
        {"key": "tokenizer.downsample", "value": [4, 8, 8], "now": [4, 4, 4], "reason": "small."},
        {"key": "extract.fps", "value": None, "now": 12.0, "reason": "all are kept."},
    ]
    record = {"costs": {}, "caches": {}, "device": "cpu", "not_measured": ["x: y"]}
    assert list(told({**record, "params": params})) == [
        "not measured: x: y",
        "params to use:",
        "  --set 'tokenizer.downsample=[4,8,8]', now [4, 4, 4]: small.",
        "  --set extract.fps=null, now 12.0: all are kept.",
    ]
    assert list(told({**record, "params": []}))[-1] == "params to use: those at hand"


def test_sizes_and_times_are_brief() -> None:
    assert [size(n) for n in (0, 999, 12_345, 5e6, 3.2e12)] == [
        "0 bytes", "999 bytes", "12.3 kB", "5 MB", "3.2e+03 GB"
    ]  # fmt: skip
    assert [duration(s) for s in (3, 600, 36_000)] == ["3 seconds", "10 minutes", "10.0 hours"]
