import json
import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.copying import PIXELS
from pipeline.evaluation.distances import DISTANCE_KEYS, RECONSTRUCTION_KEYS
from pipeline.evaluation.measure import measure_model, measure_pictures, measure_tokens
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.sets import COMPARED
from pipeline.pixels import to_bytes
from pipeline.store.reader import read_rows
from tests.pipeline.evaluation.small import (
    FRAMES,
    SIZE,
    choose,
    draw,
    small_store,
    store_of,
)

DISTANCES = {f"{key}_{who}" for key in DISTANCE_KEYS for who in COMPARED}


@pytest.fixture
def store():
    return small_store()


def pixels(tokens):
    """Decodes tokens to the picture that `pictures_of` reads, a little darker."""
    level = tokens.reshape(len(tokens), -1)[:, :FRAMES].astype(np.uint8) * 20
    shape = (len(tokens), FRAMES, SIZE, SIZE, 3)
    return np.broadcast_to(level[:, :, None, None, None], shape)


def features(videos):
    return np.moveaxis(videos[:, :, ::6, ::6].astype(float), -1, 1)


def pictures_of(store, decode=pixels, lpips=None):
    """Stands for frames, a tokenizer, and no LPIPS."""

    def read(split, video, first_frame):
        assert video == store.plan(split)["video"][first_frame].as_py()
        return pixels(store.read(split, first_frame, first_frame + 1))[0] + np.uint8(3)

    return Pictures(
        tokenizer="70" * 32,
        read=read,
        decode=lambda tokens: decode(tokens).copy(),
        encoder=lambda videos: torch.from_numpy(features(to_bytes(videos))),
        lpips=lpips or Missing("no LPIPS"),
        device="cpu",
    )


def measure(store, sets, *, batch_size=4, **given):
    found = Evaluation()
    measure_pictures(found, sets, pictures_of(store, **given), batch_size=batch_size)
    return found


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
    assert set(found.metrics) == {*RECONSTRUCTION_KEYS, *DISTANCES}
    assert not found.not_computed


def test_reconstructions_stand_for_the_same_windows_as_the_floor(store):
    # Decoding darkens by 3 levels only: mean features move by 3 in each channel, else nothing.
    found = measure(store, choose(store))
    assert found.metrics["motion_reconstructions"] == found.metrics["motion_real"]
    assert found.metrics["motion_distance_reconstructions"] == pytest.approx(
        found.metrics["motion_distance_real"]
    )


def test_samples_equal_to_the_reference_are_at_no_distance(store):
    sets = choose(store)
    samples = store_of({"samples": sets.reference.astype(np.uint16)})

    def brighter(tokens):
        return pixels(tokens) + np.uint8(3)

    found = measure(store, choose(store, samples), decode=brighter)
    assert found.metrics["frechet_samples"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["motion_distance_samples"] == 0
    assert found.metrics["frechet_real"] > 1


def test_the_share_of_blank_samples_is_told_however_much_the_others_move(store):
    # Levels of frames are tokens, times 20: two of four samples stay at one.
    tokens = draw(4, seed=5)
    tokens[1::2] = 3
    found = measure(store, choose(store, store_of({"samples": tokens})), batch_size=3).metrics
    assert found["blank_samples"] == 0.5
    assert found["blank_real"] == found["blank_reconstructions"] == 0


def test_batch_size_does_not_change_a_number(store):
    sets = choose(store, store_of({"samples": draw(5, seed=5)}))
    first, second = (measure(store, sets, batch_size=size).metrics for size in (1, 5))
    assert first == pytest.approx(second, rel=1e-9)


def test_one_sample_is_too_few_and_says_so(store):
    found = measure(store, choose(store, store_of({"samples": draw(1)})))
    assert set(found.metrics) == set(RECONSTRUCTION_KEYS)
    expected = "needs 2 windows on each side, but there are 6 and 6 real ones that share no pixel, "
    assert found.not_computed["frechet_samples"] == expected + "1 samples"
    assert {f"{key}_real" for key in DISTANCE_KEYS} <= found.not_computed.keys()


def test_one_single_video_has_no_second_half():
    store = store_of({"test": draw(3)}, {"test": ["only"] * 3})
    sets = choose(store)
    found = measure(store, sets)
    assert set(found.metrics) == set(RECONSTRUCTION_KEYS)
    assert "3 and 0 real ones that share no pixel" in found.not_computed["kernel_real"]
    assert sets.protocol()["real_sets"] == "one only: any two windows overlap"
    measure_tokens(found, sets)
    assert found.not_computed["token_distance_real"].startswith("needs 1 windows on each side")


def test_what_was_not_given_is_not_computed(store):
    found = measure(store, choose(store))
    assert found.not_computed["frechet_samples"] == "no --samples were given"


def test_what_is_missing_says_of_every_number_why(store):
    sets, found, gone = choose(store), Evaluation(), Missing("it was not given")
    measure_pictures(found, sets, gone, batch_size=4)
    of_pictures = {*RECONSTRUCTION_KEYS, *DISTANCES, "lpips", *PIXELS}
    assert found.not_computed == dict.fromkeys(of_pictures, gone.why)
    found = Evaluation()
    measure_model(found, sets, gone, EvaluateConfig(mask_ratios=(0.25, 1.0)), device="cpu")
    of_model = {f"token_{key}_mask_{p}" for key in ("loss", "accuracy") for p in (25, 100)}
    assert found.not_computed == dict.fromkeys(of_model, gone.why)


def test_a_model_is_asked_about_all_real_windows_at_every_ratio(store):
    def held_out_means(batches, *, mask_ratios, generator):
        found = list(batches("all"))
        tokens = torch.cat([tokens for tokens, _ in found])
        rows = [row for _, part in found for row in part]
        assert torch.equal(tokens, torch.from_numpy(read_rows(store, sets.split, rows)).flatten(1))
        percents = [int(100 * ratio) for ratio in mask_ratios]
        draws = [float(torch.rand((), generator=generator(percent))) for percent in percents]
        assert draws[0] != draws[1]
        return dict.fromkeys(percents, (float(tokens.sum()), len(tokens)))

    sets, found = choose(store), Evaluation()
    config = EvaluateConfig(mask_ratios=(0.25, 1.0), batch_size=5)
    measure_model(found, sets, held_out_means, config, device="cpu")
    total, count = sets.held_out().sum(), len(sets.held_out())
    assert found.metrics == {
        f"token_{key}_mask_{p}": value
        for p in (25, 100)
        for key, value in (("loss", total), ("accuracy", count))
    }


def test_lpips_is_the_mean_over_the_frames_of_all_windows(store):
    def lpips(x, y):
        assert x.shape == (4 * FRAMES, 3, SIZE, SIZE)
        return (x - y).abs().mean((1, 2, 3)) + torch.arange(len(x)) % FRAMES

    found = measure(store, choose(store, limit=4), lpips=lpips)
    assert found.metrics["lpips"] == pytest.approx(3 / 255 + (FRAMES - 1) / 2)


@pytest.mark.parametrize(
    ("frames", "causal", "starts"), [(24, False, (0, 6, 12, 18)), (22, True, (0, 4, 10, 16))]
)
def test_long_videos_are_measured_along_their_frames(frames, causal, starts):
    grid = (8, 1, 1)
    tokens = np.random.default_rng(0).integers(0, 9, (6, *grid), dtype=np.uint16)
    extra = {"causal": True} if causal else {}
    videos = [f"v{row}" for row in range(6)]
    store = store_of({"test": tokens}, {"test": videos}, grid=grid, frames=frames, extra=extra)

    def decode(tokens):
        return np.broadcast_to(tokens.astype(np.uint8)[..., None], (len(tokens), *grid, 3))

    pictures = Pictures(
        tokenizer="70" * 32,
        read=lambda split, video, first: decode(store.read(split, first, first + 1))[0],
        decode=lambda tokens: decode(tokens).copy(),
        encoder=lambda videos: videos,
        lpips=Missing("no LPIPS"),
        device="cpu",
    )
    found = Evaluation()
    measure_pictures(found, choose(store), pictures, batch_size=4)
    assert {f"frechet_real_at_{start}" for start in starts} == {
        key for key in found.metrics if key.startswith("frechet_real_at")
    }


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
