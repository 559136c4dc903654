import json
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import TokenStoreError
from pipeline.evaluation.distances import DISTANCES
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import (
    RECONSTRUCTION,
    SETS,
    choose_windows,
    measure_pictures,
    measure_tokens,
    skip_pictures,
)
from tests.memory_store import MemoryStore

K, GRID = 11, (2, 3, 5)
FRAMES, SIZE = 4, 12


def store_of(tokens, videos=None, **given):
    info = {"codebook_size": K, "grid": GRID, "tokenizer": "aa", "source": ""}
    window = {"frames": FRAMES, "stride": 1, "size": SIZE}
    plans = {
        split: pa.table({"video": names, "first_frame": list(range(len(names)))})
        for split, names in (videos or {}).items()
    }
    return MemoryStore(tokens, plans, **{**info, **window, **given})


def draw(count, *, seed=0, tokens=K):
    return np.random.default_rng(seed).integers(0, tokens, (count, *GRID), dtype=np.uint16)


@pytest.fixture
def store():
    videos = [f"v{i % 8}" for i in range(24)]
    return store_of({"train": draw(30), "test": draw(24, seed=1)}, {"test": videos})


def choose(store, samples=None, *, split="test", limit=6):
    return choose_windows(store, samples, split=split, limit=limit, seed=0)


def pixels(tokens):
    """Decodes tokens to the picture that `read` gives, a little darker."""
    level = tokens.reshape(len(tokens), -1)[:, :FRAMES].astype(np.uint8) * 20
    shape = (len(tokens), FRAMES, SIZE, SIZE, 3)
    return np.broadcast_to(level[:, :, None, None, None], shape)


def features(videos):
    return np.moveaxis(videos[:, :, ::6, ::6].astype(float), -1, 1)


def measure(store, windows, *, batch_size=4, decode=pixels):
    def read(video, first_frame):
        assert video == windows.store.plan("test")["video"][first_frame].as_py()
        return pixels(windows.store.read("test", first_frame, first_frame + 1))[0] + np.uint8(3)

    found = Evaluation()
    measure_pictures(
        found, windows, read=read, decode=decode, features=features, batch_size=batch_size
    )
    return found


def test_the_two_sets_of_windows_are_the_rows_that_were_drawn(store):
    windows = choose(store)
    for rows, tokens in zip(windows.rows, (windows.reference, windows.real), strict=True):
        np.testing.assert_array_equal(tokens, store.tokens["test"][rows])
    assert windows.count == 6


def test_every_shard_is_read_at_most_once_per_set(store):
    choose(store)
    assert all(store.shards_read.count(shard) <= 2 for shard in store.shards_read)


def test_few_samples_make_all_sets_small(store):
    windows = choose(store, store_of({"samples": draw(4)}))
    assert windows.count == 4
    assert len(windows.held_out()) == 12
    assert windows.protocol()["num_videos"] == 4
    assert windows.protocol()["num_real_windows"] == 12
    assert windows.protocol()["num_source_videos"] == 8
    assert windows.protocol()["real_sets"].startswith("two, of different videos")


def test_a_split_that_is_not_there_is_named(store):
    with pytest.raises(TokenStoreError, match="no split 'test', only train; set"):
        choose(store_of({"train": draw(3)}))


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"tokenizer": "bb"}, "samples has tokenizer bb, but tokens has aa"),
        ({"codebook_size": 12}, "samples has codebook size 12, but tokens has 11"),
        ({"grid": (2, 3, 6)}, r"samples has grid \(2, 3, 6\), but tokens has \(2, 3, 5\)"),
    ],
)
def test_samples_of_other_tokens_are_refused(store, difference, message):
    with pytest.raises(TokenStoreError, match=message):
        choose(store, store_of({"samples": draw(4)}, root="samples", **difference))


def test_token_numbers_are_those_of_the_whole_training_split(store):
    store.tokens["train"][:] = 0
    store.tokens["train"][-1] = 3
    found = Evaluation()
    measure_tokens(found, choose(store))
    bits = -(29 * math.log2(29 / 30) + math.log2(1 / 30)) / 30
    assert found.metrics["codebook_use"] == pytest.approx(2 / 11)
    assert found.metrics["codebook_dead"] == 9
    assert found.metrics["bits_per_token"] == pytest.approx(bits)
    assert found.metrics["codebook_perplexity"] == pytest.approx(2**bits)
    assert found.metrics["token_loss_uniform"] == pytest.approx(math.log(11))
    assert "token_distance_samples" in found.not_computed


def test_token_histograms_are_compared_at_equal_size(store):
    store.tokens["test"][:] = 1
    samples = draw(4, tokens=1)
    samples[:, 0] = 1
    found = Evaluation()
    measure_tokens(found, choose(store, store_of({"samples": samples})))
    assert found.metrics["token_distance_real"] == 0
    assert found.metrics["token_distance_samples"] == pytest.approx(0.5)


def test_reconstructions_are_measured_against_their_own_videos(store):
    found = measure(store, choose(store))
    assert found.metrics["psnr"] == pytest.approx(10 * math.log10(255**2 / 9))
    assert found.metrics["psnr_mean_frame"] < 20
    assert 0 < found.metrics["ssim"] <= 1


def test_every_set_is_measured_and_named(store):
    found = measure(store, choose(store, store_of({"samples": draw(9, seed=5)})))
    distances = {f"{key}_{who}" for key in DISTANCES for who in SETS}
    assert set(found.metrics) == {*RECONSTRUCTION, *distances}
    assert not found.not_computed


def test_reconstructions_stand_for_the_same_windows_as_the_floor(store):
    # Decoding darkens by 3 levels only: mean features move by 3 in each channel, else nothing.
    found = measure(store, choose(store))
    assert found.metrics["motion_reconstructions"] == found.metrics["motion_real"]
    assert found.metrics["motion_distance_reconstructions"] == pytest.approx(
        found.metrics["motion_distance_real"]
    )


def test_samples_equal_to_the_reference_are_at_no_distance(store):
    windows = choose(store)
    samples = store_of({"samples": windows.reference.astype(np.uint16)})

    def brighter(tokens):
        return pixels(tokens) + np.uint8(3)

    found = measure(store, choose(store, samples), decode=brighter)
    assert found.metrics["frechet_samples"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["motion_distance_samples"] == 0
    assert found.metrics["frechet_real"] > 1


def test_batch_size_does_not_change_a_number(store):
    windows = choose(store, store_of({"samples": draw(5, seed=5)}))
    first, second = (measure(store, windows, batch_size=size).metrics for size in (1, 5))
    assert first == pytest.approx(second, rel=1e-9)


def test_one_sample_is_too_few_and_says_so(store):
    found = measure(store, choose(store, store_of({"samples": draw(1)})))
    assert set(found.metrics) == set(RECONSTRUCTION)
    expected = "needs 2 windows on each side, but there are 6 and 6 real ones that share no pixel, "
    assert found.not_computed["frechet_samples"] == expected + "1 samples"
    assert {f"{key}_real" for key in DISTANCES} <= found.not_computed.keys()


def test_one_single_video_has_no_second_half():
    store = store_of({"test": draw(3)}, {"test": ["only"] * 3})
    windows = choose(store)
    found = measure(store, windows)
    assert set(found.metrics) == set(RECONSTRUCTION)
    assert "3 and 0 real ones that share no pixel" in found.not_computed["kernel_real"]
    assert windows.protocol()["real_sets"] == "one only: any two windows overlap"
    measure_tokens(found, windows)
    assert found.not_computed["token_distance_real"].startswith("needs 1 windows on each side")


def test_one_long_video_is_cut_in_time():
    windows = choose(store_of({"test": draw(9)}, {"test": ["only"] * 9}))
    assert (len(windows.reference), len(windows.real)) == (3, 3)
    assert windows.protocol()["real_sets"] == "two, of different times of the one scene"


def test_what_was_not_given_is_not_computed(store):
    found = measure(store, choose(store))
    assert found.not_computed["frechet_samples"] == "no --samples were given"
    skipped = Evaluation()
    skip_pictures(skipped, "no --frames was given")
    pictures = {f"{key}_{who}" for key in DISTANCES for who in SETS}
    assert set(skipped.not_computed) == {*RECONSTRUCTION, *pictures}


def test_the_first_reason_stays():
    found = Evaluation()
    found.skip(["fvd"], "first")
    found.skip(["fvd", "kvd"], "second")
    assert found.not_computed == {"fvd": "first", "kvd": "second"}


def test_infinite_numbers_are_named_and_json_can_hold_the_rest():
    found = Evaluation()
    found.add({"psnr": math.inf, "ssim": np.float64(1), "motion": math.nan, "frechet": math.inf})
    assert found.metrics == {"ssim": 1.0}
    assert found.not_computed == {
        "psnr": "is infinite: the pictures are equal",
        "motion": "is nan: made of numbers that are not finite",
        "frechet": "is inf: made of numbers that are not finite",
    }
    json.dumps(found.metrics, allow_nan=False)
