"""Models that copy are flagged, models that draw of the same world are not."""

import json
import math
import resource
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.copying import (
    COPYING_KEYS,
    PIXELS,
    SHARES,
    Content,
    Nearest,
    decoded_pair,
    judge,
    measure_copying,
    nearest_windows,
    overlap,
    verdict,
)
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import ComparedSets, Tokens, choose_windows
from tests.helpers.memory_store import MemoryStore

K, GRID = 11, (4, 3, 5)
TRAIN, TEST, SAMPLES = 60, 40, 30


def busy(count: int, rng: np.random.Generator) -> Tokens:
    """Draws windows in which every token changes all the time."""
    return rng.integers(0, K, (count, *GRID))


def calm(count: int, rng: np.random.Generator) -> Tokens:
    """Draws windows of one background in which less moves, and in a third nothing at all."""
    tokens = np.broadcast_to(np.arange(15).reshape(3, 5) % K, (count, *GRID)).copy()
    moving = rng.random(tokens.shape) < rng.choice([0, 0.3, 0.6], (count, 1, 1, 1))
    tokens[moving] = rng.integers(0, K, moving.sum())
    return tokens


def sparse(count: int, rng: np.random.Generator) -> Tokens:
    """Draws windows of bare ground in which something is to be seen for two frames."""
    tokens = np.zeros((count, *GRID), np.int64)
    for window in tokens:
        frame, column = rng.integers(0, 3), rng.integers(0, 4)
        window[frame : frame + 2, :, column : column + 2] = rng.integers(1, K, (2, 3, 2))
    return tokens


WORLDS = {"busy": busy, "calm": calm, "sparse": sparse}
EVERYTHING = Content(np.ones(K, bool), 0.0)


def store_of(tokens: dict[str, Tokens], **given) -> MemoryStore:
    plans = {
        split: pa.table(
            {
                "row": range(len(windows)),
                "video": [f"{split}{row}" for row in range(len(windows))],
                "first_frame": [0] * len(windows),
            }
        )
        for split, windows in tokens.items()
    }
    stored = {split: windows.astype(np.uint16) for split, windows in tokens.items()}
    return MemoryStore(stored, plans, codebook_size=K, grid=GRID, frames=8, **given)


def world(name: str, seed: int = 0, *, train: int = TRAIN, test: int = TEST) -> MemoryStore:
    rng = np.random.default_rng(seed)
    return store_of({"train": WORLDS[name](train, rng), "test": WORLDS[name](test, rng)})


def choose(store: MemoryStore, samples: MemoryStore | None, split: str = "test") -> ComparedSets:
    return choose_windows(store, samples, split=split, limit=SAMPLES, seed=0)


def measure(store: MemoryStore, tokens: Tokens, *, decode=None, **given) -> Evaluation:
    samples = store_of({"samples": tokens}, root="samples", **given)
    found = Evaluation()
    found.protocol = measure_copying(found, choose(store, samples), samples, decode=decode)
    return found


def exact(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    return tokens


def shifted(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    """Begins one or two latent frames later; what comes after the window is drawn."""
    for window in tokens:
        shift = rng.integers(1, 3)
        window[:-shift], window[-shift:] = window[shift:].copy(), busy(1, rng)[0, -shift:]
    return tokens


def damaged(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    """Changes 5 % of the tokens."""
    wrong = rng.random(tokens.shape) < 0.05
    return np.where(wrong, rng.integers(0, K, tokens.shape), tokens)


@pytest.mark.parametrize(
    ("name", "change"),
    [*product(("busy", "calm"), (exact, shifted, damaged)), ("sparse", exact)],
)
def test_a_model_that_returns_training_windows_is_flagged(name, change):
    store, rng = world(name), np.random.default_rng(5)
    copies = change(rng.choice(store.tokens["train"].astype(np.int64), SAMPLES), rng)
    found = measure(store, copies)
    assert found.copying["flagged"], found.copying
    assert found.metrics["near_copies_samples"] > 0.9
    assert found.metrics["copying_z"] < 0
    assert verdict({"copying": found.copying}).startswith("It copies: ")


@pytest.mark.parametrize(("name", "seed"), list(product(WORLDS, range(10))))
def test_other_draws_of_the_same_world_are_not_flagged(name, seed):
    found = measure(world(name, seed), WORLDS[name](SAMPLES, np.random.default_rng(100 + seed)))
    assert found.copying["flagged"] is False
    assert verdict({"copying": found.copying}).startswith("No sign of copying: ")


def test_a_model_of_which_four_samples_in_ten_are_copies_is_flagged():
    store, rng = world("busy"), np.random.default_rng(5)
    copies = store.tokens["train"][: SAMPLES * 4 // 10]
    found = measure(store, np.concatenate([copies, busy(SAMPLES - len(copies), rng)]))
    assert found.copying["flagged"]
    assert found.copying["near_copies"] == {"samples": 12, "real": 0}
    assert found.copying["windows_copied"] == 12


def near(distances) -> Nearest:
    zeros = np.zeros(len(distances), int)
    return Nearest(np.asarray(distances), zeros, zeros)


def test_samples_that_are_a_little_nearer_are_no_copies_however_many():
    rng = np.random.default_rng(0)
    found = Evaluation()
    judged = judge(found, near(rng.normal(0.5, 0.05, 250)), near(rng.normal(0.53, 0.05, 500)))
    assert found.metrics["copying_z"] < -5
    assert judged["flagged"] is False


def test_a_world_that_training_knows_by_heart_tells_nothing():
    judged = judge(Evaluation(), near([0.0] * 30), near([0.0] * 20 + [0.5] * 10))
    assert (judged["near_copies"], judged["near"]) == ({"samples": 30, "real": 20}, 0)


# Nearest windows


def test_overlap_is_where_both_windows_are():
    frames = "abcde"
    for shift, ours, theirs in ((0, "abcde", "abcde"), (2, "cde", "abc"), (-1, "abcd", "bcde")):
        assert [frames[part] for part in overlap(5, shift)] == [ours, theirs]


@pytest.mark.parametrize("block_tokens", [1, 300, 1 << 20])
def test_nearest_windows_are_those_of_all_pairs_at_all_shifts(monkeypatch, block_tokens):
    monkeypatch.setattr("pipeline.evaluation.copying.BLOCK_TOKENS", block_tokens)
    store, rng = world("busy"), np.random.default_rng(3)
    train = store.tokens["train"]
    tokens = np.concatenate([busy(4, rng), shifted(train[:4].astype(np.int64), rng)])
    found = nearest_windows(store, tokens, EVERYTHING)
    for number, window in enumerate(tokens):
        wanted = {}
        for row, shift in product(range(TRAIN), range(-2, 3)):
            pairs = [(i, i - shift) for i in range(4) if 0 <= i - shift < 4]
            differ = [window[i] != train[row, j] for i, j in pairs]
            wanted[row, shift] = np.mean(differ)
        assert found.distance[number] == min(wanted.values())
        assert wanted[found.row[number], found.shift[number]] == found.distance[number]
    assert found.distance[4:].max() == 0
    assert sorted(store.shards_read) == [("train", shard) for shard in range(9)]


def test_bare_ground_makes_no_copies():
    store, rng = world("sparse"), np.random.default_rng(5)
    content = Content.of(choose(store, None).known, store.tokens["test"].astype(np.int64))
    assert (content.tells.tolist(), content.least) == ([False] + [True] * (K - 1), 6.0)
    new, empty = sparse(SAMPLES, rng), np.zeros((SAMPLES, *GRID), np.int64)
    # Half a window of ground is that of many others, and tells nothing.
    assert np.median(nearest_windows(store, new, content).distance) > 0.5
    assert set(nearest_windows(store, empty, content).distance) == {1.0}
    assert measure(store, empty).copying["flagged"] is False


def test_a_window_of_one_latent_frame_is_not_shifted():
    tokens = busy(3, np.random.default_rng(0))[:, :1]
    store = MemoryStore({"train": tokens.astype(np.uint8)}, {}, codebook_size=K, grid=(1, 3, 5))
    found = nearest_windows(store, tokens[::-1].copy(), EVERYTHING)
    assert (found.row.tolist(), found.shift.tolist()) == ([2, 1, 0], [0, 0, 0])


def test_large_tokens_are_told_apart():
    tokens = np.array([[1 << 24], [(1 << 24) + 1]]).reshape(2, 1, 1, 1)
    store = MemoryStore(
        {"train": tokens[:1].astype(np.uint32)}, {}, codebook_size=1 << 25, grid=(1, 1, 1)
    )
    content = Content(np.ones(1 << 25, bool), 0.0)
    assert nearest_windows(store, tokens, content).distance.tolist() == [0, 1]


def test_of_the_same_training_window_only_the_first_is_shown():
    nearest = Nearest(np.array([0.5, 0.1, 0.2, 0.1]), np.array([7, 3, 3, 5]), np.zeros(4, int))
    assert nearest.closest() == [1, 3, 0]


class Endless(MemoryStore):
    """Makes its shards when they are read, and notes the memory of the process then, in bytes."""

    def __init__(self, *args, **given):
        super().__init__(*args, **given)
        self.resident = []

    def num_shards(self, split):
        return 100

    def shard_rows(self, split, shard):
        return 4096 * shard, 4096 * (shard + 1)

    def read_shard(self, split, shard):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * resource.getpagesize())
        return np.full((4096, *self.grid), shard, np.uint16)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells no memory of a process")
def test_memory_does_not_grow_with_the_number_of_training_windows():
    store = Endless({"train": np.zeros(1)}, {}, codebook_size=K, grid=(4, 8, 8))
    content = Content(np.ones(128, bool), 0.0)
    found = nearest_windows(store, np.full((4, 4, 8, 8), 50), content)
    assert found.row.tolist() == [50 * 4096] * 4
    # By the 20th shard threads and allocators have what they need. The others take 168 MB.
    assert max(store.resident[20:]) - store.resident[19] < 60_000_000


# What is said


def test_all_numbers_and_pairs_are_those_of_the_windows():
    store, rng = world("busy"), np.random.default_rng(5)
    tokens = np.concatenate([store.tokens["train"][[9, 9, 4]], busy(27, rng)])
    tokens[2, 0, 0, 0] = (tokens[2, 0, 0, 0] + 1) % K
    found = measure(store, tokens)
    assert set(found.metrics) == set(COPYING_KEYS) - set(PIXELS)
    assert found.protocol["num_samples"] == SAMPLES
    assert found.protocol["num_held_out"] == TEST
    assert found.protocol["num_train"] == TRAIN
    first, second, *_ = found.copying["pairs"]
    place = {"row": 9, "video": "train9", "first_frame": 0, "shift": 0}
    assert first == {"sample": 0, **place, "distance": 0}
    assert (second["sample"], second["row"]) == (2, 4)
    assert second["distance"] == 1 / math.prod(GRID)
    json.dumps(found.copying, allow_nan=False)
    distances = found.copying["distances"]
    assert distances["samples"] == sorted(distances["samples"])
    assert found.metrics["train_distance_real"] == np.median(distances["real"])
    assert measure(store, tokens) == found


def pixels(tokens: Tokens) -> np.ndarray:
    """Decodes each latent frame to two pictures of one pixel, as bright as its first token."""
    level = tokens[:, :, 0, 0].repeat(2, axis=1).astype(np.uint8)
    return np.stack([level] * 3, axis=-1)[:, :, None, None]


def test_pairs_are_compared_in_pixels_where_they_overlap():
    rng = np.random.default_rng(0)
    other = busy(1, rng)[0]
    window = np.concatenate([other[1:], busy(1, rng)[0, :1]])
    a, b = decoded_pair(window, other, -1, pixels)
    assert a.shape == (6, 1, 1, 3)
    np.testing.assert_array_equal(a, b)
    b, a = decoded_pair(other, window, 1, pixels)
    np.testing.assert_array_equal(a, b)


def test_equal_pictures_have_no_finite_psnr():
    store = world("busy")
    found = measure(store, store.tokens["train"][:SAMPLES], decode=pixels)
    assert "the pictures are equal" in found.not_computed["psnr_nearest_samples"]
    assert found.metrics["psnr_nearest_real"] > 20


def test_psnr_is_that_of_the_nearest_pairs_error():
    store = store_of({"train": np.zeros((1, *GRID)), "test": np.full((9, *GRID), 2)})
    found = measure(store, np.full((3, *GRID), 3), decode=pixels)
    assert found.metrics["psnr_nearest_samples"] == pytest.approx(10 * math.log10(255**2 / 9))
    assert found.metrics["psnr_nearest_real"] == pytest.approx(10 * math.log10(255**2 / 4))


def test_few_windows_have_distances_but_no_verdict():
    found = measure(world("busy", test=4), busy(3, np.random.default_rng(9)))
    assert found.copying["flagged"] is None
    assert set(found.not_computed) == set(SHARES)
    assert {"train_distance_samples", "train_distance_real"} == set(found.metrics)
    said = verdict({"copying": found.copying, "not_computed": found.not_computed})
    assert said == "Whether it copies is not known: 3 samples and 4 held-out windows are too few."


@pytest.mark.parametrize(
    ("splits", "split", "given", "why"),
    [
        (("train", "test"), "test", None, "no --samples were given"),
        (("test",), "test", {}, "there is no train split"),
        (("train", "test"), "train", {}, "evaluate.split is train, so no window is held out"),
        (
            ("train", "test"),
            "test",
            {"given": {"split": "train"}},
            "the samples began from training windows",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(splits, split, given, why):
    tokens = busy(9, np.random.default_rng(0))
    store = store_of(dict.fromkeys(splits, tokens))
    samples = None if given is None else store_of({"samples": tokens}, extra=given)
    found = Evaluation()
    protocol = measure_copying(found, choose(store, samples, split), samples, decode=None)
    assert found.not_computed == dict.fromkeys(COPYING_KEYS, why)
    assert (protocol, found.metrics, found.copying, verdict({})) == ({}, {}, {}, "")
