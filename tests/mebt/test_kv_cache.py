"""The sampler's fast path: the same numbers as the whole model, and nothing computed twice."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mebt import CachedPredictor, MeBT, MeBTConfig, SampleConfig, sample_frames
from mebt.draft_revise import RowNoise
from tests.helpers.slow_sampler import SlowSampler

GRID, K = (3, 2, 5), 13
KINDS = {
    "published": (
        "encode",
        "process",
        "encode",
        "decode",
        "refresh",
        "decode",
        "refresh",
        "decode",
    ),
    "dense": ("dense", "dense"),
    "dense before encode": ("encode", "dense", "encode", "process", "decode"),
    "dense before decode": ("encode", "process", "dense", "decode"),
    "dense last": ("encode", "decode", "refresh", "decode", "dense"),
    "decode twice": ("encode", "decode", "decode"),
    "process between": ("encode", "decode", "process", "decode"),
    "encode in the end": ("encode", "decode", "dense", "encode", "decode"),
}


def make(*layers: str) -> MeBT:
    torch.manual_seed(0)
    config = MeBTConfig(
        layers=layers, width=12, num_heads=2, num_latents=4, codebook_size=K, grid=GRID
    )
    model = MeBT(config)
    model.initialize(0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mebt.draft_revise.SAMPLE_CHUNK", 7)
    monkeypatch.setattr("mebt.model.QUERY_CHUNK", 5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_what_the_model_does_whatever_came_before(kind: str) -> None:
    model = make(*KINDS[kind])
    incremental = CachedPredictor(model)
    tokens = torch.randint(K, (2, 30))
    for num_context in (0, 1, 12, 20, 11, 0, 27):
        order = torch.rand(2, 30).argsort(1)
        context, targets = order[:, :num_context], order[:, num_context:]
        tokens = torch.where(torch.rand(2, 30) < 0.3, torch.randint(K, (2, 30)), tokens)
        arguments = (tokens.gather(1, context), context, targets)
        expected = model(*arguments)
        found = incremental(*arguments)
        torch.testing.assert_close(found[:, : targets.shape[1]], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[:, 1:3], expected[:, 1:3], atol=1e-4, rtol=1e-4)


PLAIN = {"schedule": "cosine", "temperature": 1.0}
CONFIGS = {
    "remask": {"draft_steps": 5},
    "whole frames": {"draft_steps": 5, "frame_noise": 1.0},
    "confidence": {"draft_steps": 5, **PLAIN, "strategy": "confidence"},
    "random": {"draft_steps": 4, **PLAIN, "strategy": "random"},
    "top-k": {"draft_steps": 9, "top_k": 3, "temperature": 1.3, "schedule": "square"},
    "top-p": {**PLAIN, "strategy": "confidence", "top_p": 0.7, "confidence_schedule": "cosine"},
    "bootstrap": {"bootstrap_steps": 6, "draft_steps": 3, "revise_rounds": 1},
    "revise": {"draft_steps": 2, "revise_rounds": 3, "revise_groups": 7},
    "longer": {"total_frames": 7, "context_frames": 2, "draft_steps": 3, "bootstrap_steps": 2},
    "drawn again": {"total_frames": 7, "redraw_frames": 1, "draft_steps": 3},
    "shorter": {"total_frames": 2, "draft_steps": 3, "redraw_frames": 2},
}


def assert_same_samples(kind: str, keep: tuple[int, ...] = (), **fields: Any) -> None:
    model, config, numbers = make(*KINDS[kind]), SampleConfig(seed=3, keep=keep, **fields), [4, 9]
    given = torch.randint(K, (2, *GRID), generator=Generator()) if keep else None
    made = sample_frames(CachedPredictor(model), GRID, config, numbers=numbers, given=given)
    for row, number in enumerate(numbers):
        slow = SlowSampler(model, config, number)
        assert torch.equal(made[row], slow.sample(None if given is None else given[row]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_any_layers_are_those_of_the_slow_sampler(kind: str) -> None:
    assert_same_samples(kind, bootstrap_steps=2, draft_steps=4, revise_rounds=2, revise_groups=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("keep", [(), (0,), (1, 0)])
def test_samples_of_any_values_are_those_of_the_slow_sampler(
    name: str, keep: tuple[int, ...]
) -> None:
    assert_same_samples("published", keep, **CONFIGS[name])


def test_a_revised_draft_is_that_of_the_slow_sampler() -> None:
    model = make(*KINDS["published"])
    config = SampleConfig(keep=(1,), revise_groups=4)
    given = torch.randint(K, (1, *GRID), generator=Generator())
    made = sample_frames(
        CachedPredictor(model), GRID, config, numbers=[7], given=given, revise_only=True
    )
    assert torch.equal(made[0], SlowSampler(model, config, 7).sample(given[0], drafted=True))


def test_only_new_context_and_only_rows_that_are_read_are_computed() -> None:
    model = make(*KINDS["published"])
    embedded, headed = [], []

    def count(seen: list[int], part: torch.nn.Module) -> None:
        part.register_forward_hook(lambda _, inputs, out: seen.append(out.shape[1]))

    count(embedded, model.token_embedding)
    count(headed, model.norm)  # Before the head.
    config = SampleConfig(bootstrap_steps=3, draft_steps=1, revise_rounds=1, revise_groups=3)
    sample_frames(CachedPredictor(model), GRID, config, numbers=[0])
    # A token is new to the context when it has been fixed, or drawn anew and not the same again.
    # Of an empty window nothing is embedded.
    bootstrap, drafted, revised = embedded[:2], embedded[2], embedded[3:]
    assert bootstrap == [1, 1]
    assert drafted == 1
    assert 17 <= revised[0] <= 20  # Of the bootstrap, 3 at most are in its first context.
    assert max(revised[1:]) <= 10
    assert headed == [1, 1, 1, 7, 7, 7, 6, *[7, 3] * 3]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_window_is_predicted_once_for_all_batches(kind: str) -> None:
    model = make(*KINDS[kind])
    passes: list[int] = []
    incremental = CachedPredictor(model)
    none = torch.zeros(3, 0, dtype=torch.int64)
    in_order = torch.arange(30).expand(3, -1)
    shuffled = torch.rand(3, 30).argsort(1)
    for targets in (in_order, shuffled, in_order[:1], shuffled[:2]):
        arguments = (none[: len(targets)], none[: len(targets)], targets)
        expected = model(*arguments)
        hook = model.blocks[0].norm_mlp.register_forward_hook(lambda *_: passes.append(1))
        incremental.reset()
        found = incremental(*arguments)[:, :30]
        hook.remove()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        if targets is in_order:
            once = len(passes)
    assert len(passes) == once > 0


def test_empty_windows_of_other_positions_are_predicted_anew() -> None:
    model = make(*KINDS["published"])
    incremental = CachedPredictor(model)
    first, other = torch.arange(20).expand(2, -1), torch.arange(10, 30).expand(2, -1)
    for targets in (first, other, torch.stack([first[0], other[0]]), first):
        none = targets[:, :0]
        found = incremental(none, none, targets)
        torch.testing.assert_close(found[:, :20], model(none, none, targets), atol=1e-4, rtol=1e-4)


def test_noise_is_exponential_and_no_zero() -> None:
    noise = RowNoise([Generator().manual_seed(seed) for seed in range(2)])
    drawn = noise.exponential(500, 1000)
    assert drawn.shape == (2, 500, 1000)
    assert float(drawn.min()) > 0
    for limit in (1e-5, 1e-3, 0.1, 1.0, 5.0):
        share = -torch.tensor(-limit).expm1()
        deviation = (share * (1 - share) / drawn.numel()).sqrt()
        assert abs(float((drawn < limit).float().mean() - share)) < 4 * float(deviation)
    assert not torch.equal(drawn[0], drawn[1])


def test_the_rarest_noise_is_finite_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 2**31 - 1):
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "random_", lambda row, generator, bits=bits: row.fill_(bits))
            noise = RowNoise([Generator()]).exponential(3)
        assert torch.isfinite(noise).all()
        assert (noise > 0).all()
