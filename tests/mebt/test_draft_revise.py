"""The sampler's promises, with an oracle in the model's place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from mebt import SampleConfig, sample
from mebt.draft_revise import (
    Canvas,
    RowNoise,
    bootstrap,
    choose_tokens,
    draft,
    remask,
    revise,
    token_probabilities,
)
from mebt.extrapolation import stream_frames
from mebt.masking import SCHEDULES

K = 7


class Oracle:
    """Predicts `position mod K` with certainty, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        assert tokens.shape == context.shape
        assert torch.equal(tokens, context % K)  # It sees only what it said itself.
        assert not (context[..., None] == targets[:, None]).any()
        self.calls.append((context.shape[1], targets.shape[1]))
        return 50.0 * torch.nn.functional.one_hot(targets % K, K).float()


def noise(batch: int, seed: int = 0) -> RowNoise:
    return RowNoise([Generator().manual_seed(seed + row) for row in range(batch)])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.sampled_from(sorted(SCHEDULES)),
    st.sampled_from(["confidence", "random"]),
    st.booleans(),
)
def test_a_draft_fixes_every_position_once(count, steps, schedule, strategy, whole) -> None:
    oracle = Oracle()
    made = draft(
        oracle,
        Canvas.empty((3, count)),
        num_steps=steps,
        noise=noise(3),
        schedule=schedule,
        strategy=strategy,
        confidence_temperature=3.0,
        unconditional=whole,
    )
    assert torch.equal(made.tokens, torch.arange(count).expand(3, -1) % K)
    assert torch.equal(made.context.sort(1).values, torch.arange(count).expand(3, -1))
    assert made.targets.shape == (3, 0)
    assert 0 < len(oracle.calls) <= min(steps, count)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 40), st.sampled_from([0.0, 1.0]))
def test_remasking_draws_all_that_is_open_and_less_in_each_step(
    count, steps, kept, frame_noise
) -> None:
    kept = min(kept, count)
    positions = torch.stack([torch.randperm(count)[:kept] for _ in range(2)])
    every = torch.arange(count).expand(2, -1)
    blank = torch.full_like(every, 3)
    start = Canvas.given(blank.scatter(1, positions, positions % K), positions)
    oracle = Oracle()
    made = remask(
        oracle,
        start,
        **{"num_steps": steps, "noise": noise(2), "schedule": "root", "temperatures": (1.0, 0.5)},
        frame_tokens=6,
        frame_noise=frame_noise,
    )
    assert torch.equal(made.tokens, every % K)
    assert torch.equal(made.context.sort(1).values, every)
    drawn = [targets for _, targets in oracle.calls]
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[:1] == [count - kept][: len(drawn)]
    assert len(drawn) == (steps if count > kept else 0)
    assert all(known + targets == count for known, targets in oracle.calls)


def test_strong_frame_noise_masks_whole_frames() -> None:
    shares: list[Tensor] = []

    def predict(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        per_frame = torch.nn.functional.one_hot(targets // 10, 6).sum(1)
        shares.append(per_frame.sort(1).values)
        return torch.zeros(*targets.shape, K)

    def run(frame_noise: float) -> Tensor:
        shares.clear()
        config = SampleConfig(draft_steps=8, frame_noise=frame_noise)
        sample(predict, (6, 2, 5), config, numbers=range(3))
        return torch.stack(shares)  # [step, sample, frame], masked tokens of each

    part = (run(100.0) % 10 > 0).sum(-1)
    assert (part <= 1).all()  # But for the last of them, which the share cuts.
    assert ((run(0.0) % 10 > 0).sum(-1) > 1).any()
    for wrong in (-0.5, 1e9):
        with pytest.raises(ValueError, match=r"frame_noise must be in 0 … 100, got"):
            SampleConfig(frame_noise=wrong)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 40))
def test_groups_need_not_divide_and_given_tokens_never_change(count, groups, kept) -> None:
    kept = min(kept, count)
    positions = torch.stack([torch.randperm(count)[:kept] for _ in range(2)])
    start = Canvas.given(torch.arange(count).expand(2, -1) % K, positions)
    oracle = Oracle()
    made = revise(oracle, start, num_groups=groups, temperature=1.0, noise=noise(2))
    assert torch.equal(made.tokens, torch.arange(count).expand(2, -1) % K)
    assert len(oracle.calls) == min(groups, count - kept)

    wrong = torch.full((2, count), 3)

    def sayer(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        return 50.0 * torch.nn.functional.one_hot(torch.full_like(targets, 5), K).float()

    revised = revise(
        sayer, Canvas.given(wrong, positions), num_groups=groups, temperature=1.0, noise=noise(2)
    ).tokens
    assert (revised.gather(1, positions) == 3).all()
    assert (revised == 5).sum() == 2 * (count - kept)


def test_bootstrap_fixes_one_token_a_step() -> None:
    oracle = Oracle()
    made = bootstrap(oracle, Canvas.empty((2, 9)), num_steps=4, noise=noise(2))
    assert oracle.calls == [(0, 9), (1, 8), (2, 7), (3, 6)]
    assert made.context.shape == (2, 4)
    assert not torch.equal(made.context[0], made.context[1])


def test_a_sample_does_not_know_its_batch() -> None:
    weights = torch.randn(64, K, generator=Generator().manual_seed(3))

    def model(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        drift = (tokens.float() * (context + 1)).sum(1, keepdim=True).sin()
        return weights[targets] + drift[..., None] * weights[(targets + 1) % 64]

    config = SampleConfig(bootstrap_steps=3, draft_steps=6, revise_rounds=2, revise_groups=3)
    together = sample(model, (4, 4, 4), config, numbers=range(6))
    alone = [sample(model, (4, 4, 4), config, numbers=[number]) for number in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row) for row in together.tolist()}) == 6


def test_given_tokens_stay() -> None:
    tokens = torch.arange(20).expand(2, -1) % K
    positions = torch.tensor([[0, 5, 7], [19, 3, 4]])
    drawn = sample(
        lambda tokens, context, targets: torch.zeros(*targets.shape, K),
        (5, 2, 2),
        SampleConfig(draft_steps=5),
        numbers=[0, 1],
        given=(tokens, positions),
    )
    assert torch.equal(drawn.gather(1, positions), tokens.gather(1, positions))
    assert (drawn != tokens).any()


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(1, 40_000, 4)
    probs = token_probabilities(logits)
    tokens, scores = choose_tokens(probs, noise(1).exponential(40_000, 4))
    shares = tokens.bincount(minlength=4) if tokens.ndim == 1 else tokens[0].bincount(minlength=4)
    torch.testing.assert_close(shares / 40_000, probs[0, 0], atol=0.01, rtol=0)
    torch.testing.assert_close(scores, probs[0, 0][tokens])


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([[[3.0, 2.0, 2.0, 1.0, 0.0]]])
    assert (token_probabilities(logits, top_k=1)[0, 0] > 0).tolist() == [True] + [False] * 4
    ties = token_probabilities(logits, top_k=2)[0, 0] > 0
    assert ties.tolist() == [True, True, True, False, False]  # Both that reach the second.
    probs = token_probabilities(logits)[0, 0]
    kept = token_probabilities(logits, top_p=float(probs[0]) + 0.01)[0, 0]
    assert (kept > 0).sum() == 2
    assert float(kept.sum()) == pytest.approx(1)
    assert (token_probabilities(logits, top_p=1e-9)[0, 0] > 0).sum() == 1
    with pytest.raises(ValueError, match="top_k is 6"):
        token_probabilities(logits, top_k=6)


def test_temperature_zero_is_the_likeliest_token() -> None:
    logits = torch.randn(2, 9, K, generator=Generator().manual_seed(0))
    probs = token_probabilities(logits, temperature=0.0)
    tokens, scores = choose_tokens(probs, noise(2).exponential(9, K))
    assert torch.equal(tokens, logits.argmax(-1))
    assert (scores == 1).all()


def test_extension_keeps_what_is_there_and_adds_windows() -> None:
    given = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2) % K
    seen: list[Tensor] = []
    firsts: list[int] = []

    def fill(canvas: Canvas, first: int) -> Canvas:
        firsts.append(first)
        seen.append(canvas.known())
        return Canvas(canvas.tokens.scatter(1, canvas.targets, 6), canvas.context, canvas.targets)

    added = stream_frames(fill, given, window_frames=4, context_frames=2, num_frames=6)
    made = torch.cat([given, *added], dim=1)
    assert made.shape == (2, 7, 2, 2)
    assert firsts == [1, 3]
    assert torch.equal(made[:, :3], given)
    assert (made[:, 3:] == 6).all()
    assert torch.equal(seen[0], given[:, -2:].flatten(1))
    assert (seen[1] == 6).all()  # The second window sees the frames that the first one made.
    with pytest.raises(ValueError, match="context_frames must be in"):
        next(stream_frames(fill, given, window_frames=2, context_frames=2, num_frames=6))


@pytest.mark.parametrize(
    "fields",
    [
        *({"draft_steps": 0}, {"top_p": 0.0}, {"top_k": 0}, {"num_samples": 0}),
        *({"temperature": -1.0}, {"temperature": (0.1, -0.1)}, {"revise_temperature": -0.1}),
        *({"revise_groups": 0}, {"revise_rounds": 1001}),
    ],
)
def test_impossible_values_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SampleConfig(**fields)
