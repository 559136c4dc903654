"""Clips edited by a model that knows conditions: labels of draws, states of their frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mebt import Conditions, SampleConfig
from mebt import editing as token_editing
from pipeline.editing.edits import continued
from stages import editing
from stages.asked import Asked
from stages.editing import Editor
from tests.helpers.small import Flow, content
from tests.stages.test_editing import exact, ok, refused, run, write

FRAMES = 4
"""Of a window; two of each latent frame."""
NEW = {"seconds": "0.16"}
"""Four frames at the rate of the clip."""


def write_states(path: Path, count: int, *names: str) -> Path:
    """Each number is that of its frame."""
    lines = [",".join(["frame", *names])]
    lines += [",".join([str(frame)] * (1 + len(names))) for frame in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """A run that knows the folders of its videos and a number of each frame; only read it."""
    flow = Flow(tmp_path_factory.mktemp("steered-edits"))
    flow.ok("extract")
    videos = sorted(x for x in (flow.root / "frames").glob("[!.]*/*") if x.is_dir())
    rows = [
        f"{video.parent.name}/{video.name},{frame},{frame % 5}"
        for video in videos
        for frame in range(40)
    ]
    states = flow.root / "trained.csv"
    states.write_text("\n".join(["video,frame,move", *rows]) + "\n", encoding="utf-8")
    labels = [f"{x.parent.name}/{x.name},{'ab'[i % 2]}" for i, x in enumerate(videos)]
    named = flow.root / "labels.csv"
    named.write_text("\n".join(["video,label", *labels]) + "\n", encoding="utf-8")
    flow.ok("tokenize", "--labels", str(named), "--states", str(states))
    flow.ok("train", "--set", "model.conditions=[label,move]")
    write(flow.root / "clip.mkv", 11)
    return flow


@pytest.fixture
def flow(made: Flow, tmp_path: Path) -> Flow:
    return made.copy(tmp_path / "flow")


@pytest.fixture
def clip(flow: Flow) -> Path:
    return flow.root / "clip.mkv"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What tokens are drawn from."""
    noted: list[dict[str, Any]] = []

    def edit(*args: Any, **kwargs: Any) -> torch.Tensor:
        noted.append(kwargs)
        return token_editing.edit(*args, **kwargs)

    monkeypatch.setattr(editing, "edit_tokens", edit)
    return noted


def states_of(conditions: Conditions, editor: Editor) -> NDArray[np.float64]:
    """Returns the numbers of frames as they were given [B T]."""
    (state,) = editor.predict.model.config.states
    assert conditions.states is not None
    given = conditions.states * torch.tensor(state.std) + torch.tensor(state.mean)
    return given.flatten(1).double().numpy()


@pytest.mark.slow
def test_labels_are_dealt_out_and_states_are_of_the_frames_that_the_model_sees(
    flow: Flow, told: list[dict[str, Any]]
) -> None:
    editor = Editor.open(flow.root / "run", flow.root / "tokenizer.safetensors")
    states = write_states(flow.root / "moves.csv", 15, "move")
    clip = editor.read(flow.root / "clip.mkv")
    for backward in (False, True):
        edit = continued(clip, 4, editor.shape, backward=backward)
        asked = editor.conditions(edit, Asked(labels=("b", "a"), states=states))
        editor.edit(edit, SampleConfig(draft_steps=2), count=3, conditions=asked)
        found = told.pop()["conditions"]
        assert found.labels.tolist() == [1, 0, 1]
        assert len(edit.span) == len(edit.new) * 2
        # Behind the end of the video, what holds at its last frame.
        expected = np.minimum(np.asarray(edit.span), len(edit.frames) - 1)
        for numbers in states_of(found, editor):
            np.testing.assert_allclose(numbers, expected, atol=1e-4)
    assert edit.span.start == 0
    assert len(edit.span) > FRAMES  # Several windows.


def test_each_window_is_told_of_its_own_frames() -> None:
    seen = []

    def predict(tokens: Any, context: Any, targets: Any, conditions: Conditions) -> torch.Tensor:
        seen.append(conditions)
        return torch.zeros(*targets.shape, 8)

    new = torch.zeros(7, 1, 1, dtype=torch.bool)
    new[2:] = True
    states = torch.arange(7.0).reshape(1, 7, 1)
    token_editing.edit(
        *(predict, torch.zeros(7, 1, 1, dtype=torch.int64), new, SampleConfig(draft_steps=1)),
        window_frames=3,
        context_frames=1,
        numbers=[0],
        conditions=Conditions(torch.tensor([4]), states),
    )
    windows = [x.states.flatten().tolist() for x in seen if x.states is not None]
    assert windows == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert all(x.labels is not None and x.labels.tolist() == [4] for x in seen)


@pytest.mark.slow
def test_what_is_asked_for_is_said_and_drawn(flow: Flow, clip: Path) -> None:
    write_states(flow.root / "moves.csv", 15, "move")
    strong = ("--set=sample.guidance=40",)
    said = ok(flow, "continue", clip, *strong, **NEW, label="a", out="a", exact="True")
    assert "asked for label a; left open: move" in said
    ok(flow, "continue", clip, *strong, **NEW, label="b", out="b", exact="True")
    assert not (exact(flow, "a")[:, 11:] == exact(flow, "b")[:, 11:]).all()
    assert (exact(flow, "a")[:, :11] == exact(flow, "b")[:, :11]).all()
    before = content(flow.root / "b")
    ok(flow, "continue", clip, *strong, **NEW, label="b", out="b", exact="True")
    assert content(flow.root / "b") == before
    again = run(flow, "continue", clip, *strong, **NEW, label="a", out="b", exact="True")
    assert again.exit_code == 1
    moves = str(flow.root / "moves.csv")
    said = ok(flow, "inpaint", clip, label="a", states=moves, box="2,2,6,6", out="box")
    assert f"asked for label a and states of {moves}" in said


@pytest.mark.slow
def test_what_cannot_be_asked_for_is_one_line(flow: Flow, clip: Path) -> None:
    line = refused(flow, "continue", clip, **NEW, label="c")
    assert line.endswith("does not know the label 'c'; it knows a, b.")
    few = write_states(flow.root / "few.csv", 14, "move")
    line = refused(flow, "continue", clip, **NEW, states=str(few))
    assert "few.csv ends with frame 13, but frames up to 14 are drawn, counted from 0" in line
    other = write_states(flow.root / "other.csv", 15, "turn")
    line = refused(flow, "continue", clip, **NEW, states=str(other))
    assert "has 'turn', which" in line and line.endswith("does not know; it knows move.")
    line = refused(flow, "continue", clip, "--set=sample.guidance=2", **NEW)
    assert "sample.guidance is 2.0" in line and line.endswith("give --label or --states.")
    flow.ok("train", out="plain")
    line = refused(flow, "continue", clip, **NEW, run=str(flow.root / "plain"), label="a")
    assert "knows no conditions, so none can be asked for" in line
