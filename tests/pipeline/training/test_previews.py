"""What a run keeps of what its model drew."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import CheckpointError
from pipeline.training.previews import FILE, FOLDER, Previews, Tokens, read_previews, write_previews


def drawn(step: int) -> Tokens:
    return np.random.default_rng(step).integers(0, 13, (4, 2, 3, 5))


def previews(run: Path, **more) -> Previews:
    return Previews(run, first=0, last=25, draw=lambda weights: drawn(weights["step"]), **more)


def test_a_model_is_drawn_from_at_the_first_step_the_last_and_every_so_many_between() -> None:
    steps = range(26)
    assert [step for step in steps if previews(Path(), every=10).due(step)] == [0, 10, 20, 25]
    assert not any(previews(Path(), every=0).due(step) for step in steps)
    going_on = Previews(Path(), every=10, first=7, last=25, draw=drawn)
    assert [step for step in steps[7:] if going_on.due(step)] == [7, 10, 20, 25]


def test_what_was_drawn_is_kept_and_never_drawn_again(tmp_path: Path) -> None:
    shown = {}
    first = previews(tmp_path, every=10, show=lambda path, tokens: shown.update({path: tokens}))
    for step in (0, 10, 20):
        first.add(step, {"step": step})
    assert list(shown) == [tmp_path / FOLDER / f"step-000000{step}.webp" for step in ("00", 10, 20)]
    assert first.seconds > 0
    second = previews(tmp_path, every=10, kept=read_previews(tmp_path, up_to=15))
    second.add(10, {"step": 0})
    second.add(25, {"step": 25})
    found = read_previews(tmp_path)
    assert list(found) == [0, 10, 25]
    for step, tokens in found.items():
        np.testing.assert_array_equal(tokens, drawn(step), strict=True)


def test_a_run_without_previews_has_none(tmp_path: Path) -> None:
    assert read_previews(tmp_path) == {}


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    write_previews(tmp_path, {0: drawn(0), 10: drawn(10)})
    path = tmp_path / FOLDER / FILE
    data = path.read_bytes()
    flipped = [
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        for at in range(0, len(data), 7)
    ]
    for damaged in (*flipped, b"", data[:-1], data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tokens\.parquet is damaged.*Delete it"):
            read_previews(tmp_path)
