"""A few latent frames at a time, with an oracle in the model's place."""

import pytest
import torch
from torch import Tensor

from mebt import SampleConfig
from mebt.live import next_frames

GRID, K = (4, 2, 3), 31
CONFIG = SampleConfig(draft_steps=3, seed=5)


class Oracle:
    """Predicts `position mod K` with certainty; remembers what it was given."""

    def __init__(self) -> None:
        self.context: list[set[int]] = []

    def __call__(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        assert {*context[0].tolist()} | {*targets[0].tolist()} == set(range(24))  # As in training.
        self.context.append(set(context[0].tolist()))
        return 50.0 * torch.nn.functional.one_hot(targets % K, K).float()


@pytest.mark.parametrize(("known", "count"), [(0, 1), (0, 4), (1, 1), (2, 2), (3, 1)])
def test_new_frames_are_those_behind_the_known_ones(known: int, count: int) -> None:
    oracle = Oracle()
    before = torch.full((known, 2, 3), 30)
    frames = next_frames(oracle, GRID, before, CONFIG, count=count, number=0)
    expected = torch.arange(24).reshape(GRID)[known : known + count]
    assert torch.equal(frames, expected)
    assert all(set(range(6 * known)) <= context for context in oracle.context)


def test_draws_of_a_video_differ_and_can_be_had_again() -> None:
    def uniform(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(*targets.shape, K)

    def drawn(number: int, seed: int) -> Tensor:
        config = SampleConfig(draft_steps=3, seed=seed)
        known = torch.zeros((1, 2, 3), dtype=torch.int64)
        return next_frames(uniform, GRID, known, config, count=2, number=number)

    assert torch.equal(drawn(7, 1), drawn(7, 1))
    assert not torch.equal(drawn(7, 1), drawn(8, 1))
    assert not torch.equal(drawn(7, 1), drawn(7, 2))


@pytest.mark.parametrize(("known", "count"), [(3, 2), (4, 1), (0, 5), (1, 0)])
def test_more_than_a_window_is_refused(known: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{known} latent frames and {count} new ones"):
        next_frames(
            Oracle(),
            GRID,
            torch.zeros((known, 2, 3), dtype=torch.int64),
            CONFIG,
            count=count,
            number=0,
        )
