"""Drawing some tokens of a video: kept ones never change, long ones go window by window."""

import pytest
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mebt import SampleConfig, sample
from mebt.editing import edit

H, W, K = 3, 5, 320
CONFIG = SampleConfig(draft_steps=4, revise_rounds=1, revise_groups=3)


class Oracle:
    """Is sure that each new token is one more than the known one before it in time, or behind it.

    What it predicts of a token with no such neighbour is 7.
    """

    def __init__(self) -> None:
        self.contexts: list[int] = []

    def __call__(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        self.contexts.append(context.shape[1])
        rows = []
        for known, where, asked in zip(tokens, context, targets, strict=True):
            at = dict(zip(where.tolist(), known.tolist(), strict=True))
            rows.append([self.value(at, place) for place in asked.tolist()])
        return 1e4 * torch.nn.functional.one_hot(torch.tensor(rows), K).float()

    def value(self, at: dict[int, int], place: int) -> int:
        for step in range(1, 40):
            for other in (place - step * H * W, place + step * H * W):
                if other in at:
                    return at[other] + (place - other) // (H * W)
        return 7


def volume(length: int) -> Int[Tensor, "t h w"]:
    place = torch.arange(H * W).reshape(1, H, W)
    return 20 * place + torch.arange(length)[:, None, None]


def holes(length: int, seed: int) -> Bool[Tensor, "t h w"]:
    return torch.rand((length, H, W), generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("length", "window"), [(4, 4), (3, 4), (9, 4), (11, 6)])
def test_kept_tokens_never_change(length: int, window: int, seed: int) -> None:
    given, new = volume(length), holes(length, seed)

    def guess(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(*targets.shape, K)

    made = edit(
        guess, given, new, CONFIG, window_frames=window, context_frames=2, numbers=[0, 1, 2]
    )
    assert made.shape == (3, length, H, W)
    assert (made[:, ~new] == given[~new]).all()
    assert (made[:, new] != given[new]).float().mean() > 0.95  # All of them were drawn.
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize(
    ("length", "drawn"), [(4, slice(2, 4)), (10, slice(2, 10)), (10, slice(0, 8)), (9, slice(3, 7))]
)
def test_windows_go_on_from_what_there_is(length: int, drawn: slice) -> None:
    new = torch.zeros(length, H, W, dtype=torch.bool)
    new[drawn] = True
    given = torch.where(new, 0, volume(length))
    made = edit(Oracle(), given, new, CONFIG, window_frames=4, context_frames=2, numbers=[5])
    assert torch.equal(made[0], volume(length))


def test_every_window_knows_the_frames_before_it() -> None:
    new = torch.ones(10, H, W, dtype=torch.bool)
    new[:2] = False
    oracle = Oracle()
    edit(oracle, volume(10), new, CONFIG, window_frames=4, context_frames=2, numbers=[0])
    assert min(oracle.contexts) == 2 * H * W
    with pytest.raises(ValueError, match="context_frames must be in 1 … 3, got 4"):
        edit(oracle, volume(10), new, CONFIG, window_frames=4, context_frames=4, numbers=[0])


def test_windows_that_hold_nothing_new_are_left_out() -> None:
    new = torch.zeros(10, H, W, dtype=torch.bool)
    new[8, 1, 2] = True
    oracle = Oracle()
    edit(oracle, volume(10), new, CONFIG, window_frames=4, context_frames=2, numbers=[0])
    assert set(oracle.contexts) == {4 * H * W - 1}


def test_one_window_is_what_sample_draws(generator: torch.Generator) -> None:
    bias = torch.randn((4 * H * W, 13), generator=generator)
    given, new = volume(4) % 13, holes(4, 1)
    positions = (~new.flatten()).nonzero()[:, 0].expand(2, -1)

    def predict(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        return bias[targets] + tokens.float().mean()

    made = edit(predict, given, new, CONFIG, window_frames=4, context_frames=1, numbers=[3, 8])
    whole = (given.flatten().expand(2, -1), positions)
    expected = sample(predict, (4, H, W), CONFIG, numbers=[3, 8], given=whole)
    assert torch.equal(made.flatten(1), expected)
    (alone,) = edit(predict, given, new, CONFIG, window_frames=4, context_frames=1, numbers=[8])
    assert torch.equal(alone, made[1])
