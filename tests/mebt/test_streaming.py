"""Samples of any length: made a window at a time, left off anywhere, and gone on with."""

import itertools

import pytest
import torch
from torch import Tensor

from mebt import CachedPredictor, SampleConfig, Stream, sample_frames
from mebt.draft_revise import Canvas
from mebt.extrapolation import stream_frames, window_sizes
from tests.mebt import test_conditions
from tests.mebt.test_kv_cache import GRID, KINDS, make

LONG = {"draft_steps": 2, "bootstrap_steps": 1, "revise_rounds": 1, "revise_groups": 2, "seed": 5}


def stream(kind: str, **fields: int) -> Stream:
    config = SampleConfig(**{**LONG, "total_frames": 6, **fields})
    return Stream(CachedPredictor(make(*KINDS[kind])), GRID, config, numbers=[3, 1])


@pytest.mark.parametrize("fields", [{}, {"context_frames": 2}, {"redraw_frames": 1}])
def test_the_frames_of_a_stream_are_those_of_the_whole(fields: dict[str, int]) -> None:
    whole = stream("published", **fields)
    parts = list(whole)
    assert [part.shape[1] for part in parts] == whole.sizes()
    assert sum(whole.sizes()) == whole.made == 6
    made = sample_frames(
        CachedPredictor(make(*KINDS["published"])), GRID, whole.config, numbers=[3, 1]
    )
    assert torch.equal(torch.cat(parts, 1), made)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("published", {"context_frames": 2}),
        ("decode twice", {"redraw_frames": 1}),
        ("dense before encode", {}),
    ],
)
def test_it_goes_on_with_the_same_tokens_wherever_it_was_left(
    kind: str, fields: dict[str, int]
) -> None:
    whole = stream(kind, **fields)
    made, states = [], []
    for part in whole:
        made.append(part)
        states.append(whole.state())
    for done, state in list(enumerate(states, 1))[-3:]:
        other = stream(kind, **fields)
        last = torch.cat(made[:done], 1)[:, -other.context :]
        other.restore({name: tensor.clone() for name, tensor in state.items()}, last)
        assert other.made == sum(whole.sizes()[:done])
        rest = list(other)
        assert len(rest) == len(made) - done
        assert torch.equal(torch.cat([*made[:done], *rest], 1), torch.cat(made, 1))
        assert other.state().keys() == states[-1].keys()
        for name, tensor in other.state().items():
            assert torch.equal(tensor, states[-1][name]), name


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_so_it_does_with_conditions_of_each_window(guidance: float) -> None:
    config = SampleConfig(**LONG, total_frames=6, guidance=guidance)
    model, known = test_conditions.make(), test_conditions.given(frames=6)

    def begin() -> Stream:
        return Stream(CachedPredictor(model), GRID, config, numbers=[3, 1], conditions=known)

    whole, made = begin(), []
    for part in whole:
        made.append(part)
        state = whole.state()
        other = begin()
        other.restore(state, torch.cat(made, 1)[:, -1:])
        if whole.made < 6:
            rest = torch.cat(list(other), 1)
    assert torch.equal(rest, torch.cat(made, 1)[:, -rest.shape[1] :])


def test_without_a_state_of_the_predictor_keys_lie_in_other_places() -> None:
    """Sums go by the slots: a predictor that begins anew may round otherwise."""
    whole = stream("published")
    next(iter(whole))
    slots = whole.state()["predict.slots"]
    assert not torch.equal(slots, torch.arange(30).expand_as(slots))


@pytest.mark.parametrize(
    "change",
    [
        {"made": torch.tensor(9)},
        {"made": torch.tensor([1, 2])},
        {"noise": torch.zeros(1, 5056, dtype=torch.uint8)},
        {"noise": torch.zeros(2, 7, dtype=torch.uint8)},
        {"predict.slots": torch.zeros(2, 30, dtype=torch.int64)},
        {"predict.slots": torch.zeros(2, 29, dtype=torch.int64)},
        {"predict.tokens": torch.full((2, 30), 13)},
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, Tensor]) -> None:
    whole = stream("published")
    next(iter(whole))
    state = whole.state()
    with pytest.raises(ValueError):
        stream("published").restore({**state, **change}, whole.last)
    with pytest.raises(ValueError, match=r"no state of such samples|frames, the last"):
        stream("published").restore(state, whole.last[:, :, 1:])
    for name in change:
        with pytest.raises(ValueError, match="no state of such samples"):
            stream("published").restore({k: v for k, v in state.items() if k != name}, whole.last)


@pytest.mark.parametrize(
    ("window", "context", "redraw"), [(3, 1, 0), (5, 2, 1), (16, 8, 3), (4, 3, 0)]
)
def test_windows_know_where_they_begin_and_are_counted(
    window: int, context: int, redraw: int
) -> None:
    begins = []

    def fill(canvas: Canvas, first_frame: int) -> Canvas:
        begins.append(first_frame)
        known = canvas.tokens[:, :context]
        assert torch.equal(known[0], torch.arange(first_frame, first_frame + context))
        every = torch.arange(first_frame, first_frame + window)[None]
        return Canvas(every, canvas.context, canvas.targets)

    for total in range(1, 40):
        begins.clear()
        first = torch.arange(window - redraw if total > window else window)[None, :, None, None]
        sizes = {"window_frames": window, "context_frames": context, "redraw_frames": redraw}
        parts = list(stream_frames(fill, first, num_frames=total, **sizes))
        video = torch.cat([first, *parts], 1).flatten()
        assert torch.equal(video, torch.arange(len(video)))
        assert total <= len(video) or total < window
        added = window_sizes(total, window=window, context=context, redraw=redraw)
        assert sum(added) == total
        assert len(parts) == len(added) - 1
        assert added[1:-1] == [part.shape[1] for part in parts[:-1]]
        assert added[0] == min(first.shape[1], total)
        assert all(b - a == window - context - redraw for a, b in itertools.pairwise(begins))


@pytest.mark.parametrize("redraw", [-1, 2])
def test_a_window_without_room_for_new_frames_is_refused(redraw: int) -> None:
    sizes = {"window_frames": 4, "context_frames": 2, "redraw_frames": redraw}
    tokens = torch.zeros(1, 4, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="redraw_frames"):
        next(stream_frames(lambda canvas, _: canvas, tokens, num_frames=9, **sizes))
