"""The classifier finds what sets windows apart, wherever that lies, and nothing where nothing does.

Windows are of bars that fall by a line each latent frame over noise of other tokens: bars that rise
have the same frames, and the same tokens as often.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluation import c2st
from pipeline.evaluation.c2st import (
    C2ST_KEYS,
    CubeClassifier,
    Halves,
    cubes_of,
    measure_c2st,
    told_apart,
)
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import Tokens, choose_windows
from tests.helpers.memory_store import MemoryStore
from tests.pipeline.evaluation.small import store_of

K, GRID = 12, (4, 5, 5)
ALL = np.ones(K, bool)


def falling(count: int, seed: int) -> Tokens:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, K // 2, (count, *GRID))
    lines = (rng.integers(0, 5, (count, 1)) + np.arange(4)) % 5
    bars = lines[:, :, None, None] == np.arange(5)[:, None]
    colours = rng.integers(K // 2, K, (count, 1, 1, 1))
    return np.where(bars, colours, tokens)


def rising(count: int, seed: int) -> Tokens:
    return falling(count, seed)[:, ::-1]


def cut(windows: Tokens, tells: np.ndarray = ALL) -> Halves:
    first, second = (cubes_of(half, tells, torch.Generator()) for half in np.split(windows, 2))
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drawn", "least", "most"), [(falling, 0.44, 0.56), (rising, 0.8, 1.0)], ids=["same", "other"]
)
def test_only_what_moves_otherwise_is_told_apart(
    drawn: Callable[[int, int], Tokens], least: float, most: float
) -> None:
    found = told_apart(cut(falling(200, 0)), cut(drawn(100, 1)), seed=0)
    assert found is not None
    assert least < found <= most


def test_the_same_windows_give_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c2st, "STEPS", 20)
    sets = cut(falling(40, 0)), cut(rising(40, 1))
    torch.manual_seed(1)
    first = told_apart(*sets, seed=0)
    torch.manual_seed(2)
    assert told_apart(*sets, seed=0) == first
    assert told_apart(*sets, seed=1) != first


def test_cubes_are_around_what_tells_something_and_no_larger_than_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = np.arange(2 * 4 * 3 * 2).reshape(2, 4, 3, 2)
    tells = np.zeros(48, bool)
    # Cubes are of 3x3x2: the first in time of one window, the second of the other; 0 has none.
    middle = [1 * 6 + 1 * 2 + 1, 24 + 2 * 6 + 1 * 2 + 1, 0]
    tells[middle] = True
    found = cubes_of(tokens, tells, torch.Generator())
    assert found.tolist() == [list(range(18)), list(range(30, 48))]
    monkeypatch.setattr(c2st, "MAX_CUBES", 3)
    some = cubes_of(tokens, np.ones(48, bool), torch.Generator().manual_seed(0))
    assert some.shape == (3, 18)
    whole = {0, 6, 24, 30}
    assert len(set(some[:, 0].tolist())) == 3
    assert set(some[:, 0].tolist()) < whole


def test_tokens_are_left_out_in_learning_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    cubes = torch.tensor([3, 5, 90_000])[torch.randint(3, (50, 8), generator=generator)]
    classifier = CubeClassifier(cubes, generator)
    assert classifier.embedding.num_embeddings == 4
    seen: list[torch.Tensor] = []
    classifier.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert len(classifier.scores(cubes)) == 50
    assert torch.equal(torch.tensor([3, 5, 90_000])[seen.pop()], cubes)
    classifier.scores(torch.tensor([[2, 3, 4, 5, 6, 89_999, 90_000, 90_001]]))
    assert seen.pop().tolist() == [[3, 0, 3, 1, 3, 3, 2, 3]]
    monkeypatch.setattr(c2st, "STEPS", 3)
    before = classifier.embedding.weight.detach().clone()
    classifier.learn(cubes, cubes, generator)
    assert not torch.equal(before, classifier.embedding.weight)
    assert len(seen) == 3
    for batch in seen:
        assert batch.shape == (2 * c2st.BATCH, 8)
        assert float((batch == 3).float().mean()) == pytest.approx(c2st.LEFT_OUT, abs=0.03)


def measure(
    samples: MemoryStore | None, train: int = 40, test: int = 40, split: str = "test"
) -> tuple[Evaluation, dict[str, object]]:
    tokens = {"train": falling(train, 0), "test": falling(test, 1)}
    videos = {name: [f"v{i}" for i in range(len(rows))] for name, rows in tokens.items()}
    store = store_of(tokens, videos, codebook_size=K, grid=GRID)
    sets = choose_windows(store, samples, split=split, limit=32, seed=0)
    found = Evaluation()
    return found, measure_c2st(found, sets, samples, seed=0)


def drawn(tokens: Tokens, **extra: object) -> MemoryStore:
    return store_of({"sample": tokens}, codebook_size=K, grid=GRID, extra=extra)


def names(windows: Tokens) -> set[bytes]:
    return {window.astype(np.int64).tobytes() for window in windows}


def test_halves_are_drawn_at_random_and_share_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_up: list[Tokens] = []
    monkeypatch.setattr(
        c2st, "cubes_of", lambda tokens, *_: cut_up.append(tokens) or torch.tensor([[len(cut_up)]])
    )
    compared = []
    monkeypatch.setattr(
        c2st, "told_apart", lambda *sets, **how: compared.append(sets) or len(compared) / 4
    )
    samples = rising(27, 2)
    found, protocol = measure(drawn(samples), train=41)
    assert found.metrics == {"c2st_samples": 0.25, "c2st_real": 0.5}
    numbers = [[int(half) for half in halves] for sets in compared for halves in sets]
    assert numbers == [[1, 2], [3, 4], [1, 2], [5, 6]]
    assert [len(half) for half in cut_up] == [20, 20, *[13] * 4]
    # The windows differ from one another, so that a half that comes twice would be short of some.
    for number, whole in enumerate((falling(41, 0), samples, falling(40, 1))):
        first, second = cut_up[2 * number : 2 * number + 2]
        mixed = names(first) | names(second)
        assert len(mixed) == 2 * len(first)
        assert mixed < names(whole)
        assert names(first) != names(whole[: len(first)])
    assert (protocol["num_windows"], protocol["num_train"]) == (26, 41)


@pytest.mark.slow
@pytest.mark.parametrize("videos", [1, 2, 30])
def test_training_windows_are_not_told_from_training(videos: int) -> None:
    """However different the videos are that they are of: see the halves."""
    rng = np.random.default_rng(0)
    grounds = rng.integers(0, K, (videos, *GRID))
    which = rng.integers(0, videos, 100)
    noisy = rng.random((100, *GRID)) < 0.5
    windows = np.where(noisy, falling(100, 0), grounds[which])
    known, other = windows[:60], windows[60:]
    found = told_apart(cut(known), cut(other), seed=0)
    assert found == pytest.approx(0.5, abs=0.06)


def test_samples_that_hold_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c2st, "STEPS", 20)
    tells = np.arange(K) > 0
    blank = np.zeros((16, *GRID), dtype=np.int64)
    assert told_apart(cut(falling(20, 0)), cut(blank, tells), seed=0) is None
    blank[0, 1, 1, 1] = 1
    assert [len(cubes) for cubes in cut(blank, tells)] == [1, 0]
    assert told_apart(cut(falling(20, 0)), cut(blank, tells), seed=0) is None
    common = {"train": np.zeros((16, *GRID), np.int64), "test": falling(16, 1)}
    common["train"][:, 1, 1, 1] = 3
    videos = {name: [f"v{i}" for i in range(16)] for name in common}
    store, samples = store_of(common, videos, codebook_size=K, grid=GRID), drawn(0 * blank)
    sets, found = choose_windows(store, samples, split="test", limit=32, seed=0), Evaluation()
    measure_c2st(found, sets, samples, seed=0)
    assert set(found.metrics) == {"c2st_real"}
    assert found.not_computed == {
        "c2st_samples": "half of a set holds nothing but the commonest tokens"
    }


@pytest.mark.parametrize(
    ("samples", "sizes", "why"),
    [
        (None, {}, "no --samples were given"),
        (drawn(rising(16, 2)), {"split": "train"}, "evaluate.split is train, so no window is"),
        (
            drawn(rising(16, 2), given={"split": "train"}),
            {},
            "the samples began from training windows",
        ),
        (drawn(rising(16, 2), given={"split": "test"}), {}, "the samples began from real windows"),
        (drawn(rising(15, 2)), {}, "15 samples, 40 held-out windows, 40 training windows"),
        (drawn(rising(16, 2)), {"train": 15}, "16 samples, 40 held-out windows, 15 training"),
        (drawn(rising(16, 2)), {"test": 15}, "16 samples, 15 held-out windows, 40 training"),
    ],
)
def test_what_cannot_be_measured_is_named(
    samples: MemoryStore | None, sizes: dict[str, Any], why: str
) -> None:
    found, protocol = measure(samples, **sizes)
    assert (protocol, found.metrics) == ({}, {})
    assert set(found.not_computed) == set(C2ST_KEYS)
    assert all(why in reason for reason in found.not_computed.values())
