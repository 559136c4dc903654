"""What MeBT learns from."""

import itertools

import pytest
import torch
from torch import Generator, Tensor

from mebt.masking import num_masked
from mebt.objective import Micro, ObjectiveConfig, objective, with_noise
from tests.mebt.test_kv_cache import KINDS, make


def generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_a_share_of_the_tokens_is_replaced_each_row_by_its_own_draws() -> None:
    tokens = torch.full((4, 6000), 5)
    noisy = with_noise(tokens, 0.3, 10, range(4))
    changed = (noisy != 5).float().mean(1)  # A tenth of the new tokens are the old ones.
    torch.testing.assert_close(changed, torch.full((4,), 0.27), atol=0.02, rtol=0)
    assert noisy.flatten().bincount(minlength=10).count_nonzero() == 10
    assert torch.equal(with_noise(tokens[2:], 0.3, 10, (2, 3)), noisy[2:])
    assert (tokens == 5).all()
    assert with_noise(tokens, 0.0, 10, []) is tokens


def test_the_model_sees_noise_in_the_context_and_predicts_what_was_there() -> None:
    model = make(*KINDS["published"])
    tokens, seen = torch.full((2, 30), 3), torch.full((2, 30), 4)
    order = torch.arange(30).expand(2, -1)
    calls: list[tuple[Tensor, ...]] = []
    model.register_forward_pre_hook(lambda _, given: calls.append(given[:4]))
    config = ObjectiveConfig(empty_share=0.0)
    objective(
        model,
        Micro(tokens, order, seen=seen),
        model=model.config,
        config=config,
        step=0,
        generator=generator(1),
    )
    ((context, _, _, truth),) = calls
    assert context.unique().tolist() == [4]
    assert truth.unique().tolist() == [3]


def test_the_second_half_of_the_steps_has_a_schedule_of_its_own() -> None:
    model = make(*KINDS["published"])
    num_targets: list[int] = []
    model.register_forward_pre_hook(lambda _, given: num_targets.append(given[2].shape[1]))
    micro = Micro(torch.zeros(1, 30, dtype=torch.int64), torch.arange(30)[None])
    for late, schedule in itertools.product((False, True), ("root", ("cube", "root"))):
        objective(
            model,
            micro,
            model=model.config,
            config=ObjectiveConfig(schedule=schedule, empty_share=0.0),
            step=0,
            generator=generator(1),
            late=late,
        )
    progress = float(torch.rand((), generator=generator(1)))
    root, cube = (num_masked(name, progress, 30) for name in ("root", "cube"))
    assert root != cube
    assert num_targets == [root, cube, root, root]


@pytest.mark.parametrize("schedule", ["fast", ("linear", "fast")])
def test_an_unknown_schedule_is_refused(schedule: str | tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="unknown schedule 'fast'; choose from cosine, linear"):
        ObjectiveConfig(schedule=schedule)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="context_noise must be in"):
        ObjectiveConfig(context_noise=share)
