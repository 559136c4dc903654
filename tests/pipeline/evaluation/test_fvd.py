"""FVD over runs and along the video, with features that can be computed by hand."""

import statistics

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import TokenStoreError
from pipeline.evaluation.config import PROTOCOLS, EvaluateConfig, Protocol
from pipeline.evaluation.fvd import Network, measure_fvd, open_i3d, plan_repeats, window_starts
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.sets import COMPARED
from pipeline.pixels import to_bytes, to_model
from tests.helpers.memory_store import MemoryStore

GRID, K, SIZE = (1, 1, 1), 200, 2


def store_of(tokens, *, frames=4, **given):
    """Windows of one token each, each of a video of its own."""
    tokens = np.asarray(tokens, dtype=np.uint16).reshape(-1, *GRID)
    names = [f"v{index:04d}" for index in range(len(tokens))]
    plan = pa.table({"video": names, "first_frame": [0] * len(names)})
    info = {"codebook_size": K, "grid": GRID, "tokenizer": "aa", "source": "ss"}
    window = {"frames": frames, "stride": 1, "size": SIZE}
    return MemoryStore({"test": tokens}, {"test": plan}, **{**info, **window, **given})


class Eyes:
    """Sees the mean level of a video; counts how many it has seen."""

    def __init__(self):
        self.seen = 0

    def __call__(self, videos):
        self.seen += len(videos)
        return videos.mean(axis=(2, 3, 4)).mean(axis=1, keepdims=True).astype(np.float32)


def network(eyes=None, **given):
    return Network(**{"logits": eyes or Eyes(), "identity": "i3d", "truncate": False, **given})


def pixels(level, frames):
    """A video that gets brighter by one level every 16 frames."""
    ramp = np.arange(frames) // 16 + level
    return np.broadcast_to(ramp[:, None, None, None], (frames, SIZE, SIZE, 3)).astype(np.uint8)


def pictures_of(store, darker=0):
    """Stands for frames, and a tokenizer that makes them darker."""
    frames = store.info.frames

    def decode(tokens, *, truncate=False):
        levels = (int(token) - darker for token in tokens.flatten())
        videos = np.stack([pixels(level, frames) for level in levels])
        return to_bytes(to_model(videos), truncate=truncate)

    return Pictures(
        tokenizer="70" * 32,
        read=lambda split, video, _: pixels(
            int(store.tokens[split][int(video[1:])].item()), frames
        ),
        decode=decode,
        encoder=to_model,
        lpips=Missing("no LPIPS"),
        device="cpu",
    )


def measure(store, samples=None, *, num_videos=6, runs=1, seed=0, hop=16, darker=0, **given):
    config = EvaluateConfig(num_videos=num_videos, runs=runs, seed=seed, fvd_hop=hop, batch_size=4)
    planned = plan_repeats(store, samples, config)
    found = Evaluation()
    seeing = given.pop("network", None) or network(**given)
    measure_fvd(found, planned, seeing, pictures_of(store, darker), config)
    return found, planned


def moments(levels):
    return statistics.fmean(levels), statistics.stdev(levels)


def test_fvd_is_the_distance_of_bell_curves_by_hand():
    store, samples = store_of(range(20, 40)), store_of(np.arange(90, 120))
    found, planned = measure(store, samples, darker=2)
    (sets,) = planned
    (a, s), (b, t) = (moments(w.flatten().tolist()) for w in (sets.reference, sets.real))
    expected = {"real": (b, t), "reconstructions": (b - 2, t), "samples": moments(range(88, 94))}
    for who, (mean, spread) in expected.items():
        assert found.metrics[f"fvd_{who}"] == pytest.approx((a - mean) ** 2 + (s - spread) ** 2)
    assert set(found.metrics) == {f"{key}_{who}" for key in ("fvd", "kvd") for who in COMPARED}
    assert not found.not_computed


def test_kvd_is_the_unbiased_estimate_by_hand():
    found, planned = measure(store_of([3, 5, 8, 9]), num_videos=2)
    (sets,) = planned
    (a, b), (c, d) = (w.flatten().tolist() for w in (sets.reference, sets.real))
    between = statistics.fmean((x * y + 1) ** 3 for x in (a, b) for y in (c, d))
    expected = (a * b + 1) ** 3 + (c * d + 1) ** 3 - 2 * between
    assert found.metrics["kvd_real"] == pytest.approx(expected)


def test_runs_share_neither_seeds_nor_samples_and_give_mean_and_spread():
    store, samples = store_of(range(20, 60)), store_of(np.arange(60, 78))
    found, planned = measure(store, samples, runs=3)
    repeats = list(planned)
    assert [sets.samples.flatten().tolist() for sets in repeats] == [
        list(range(first, first + 6)) for first in (60, 66, 72)
    ]
    assert len({tuple(sets.rows[0]) for sets in repeats}) == 3
    single = []
    for run, one in enumerate(repeats):
        own, _ = measure(store, store_of(one.samples), seed=run)
        single.append(own.metrics)
    for key, value in single[0].items():
        several = [metrics[key] for metrics in single]
        assert found.metrics[key] == pytest.approx(statistics.fmean(several)), value
        assert found.metrics[f"{key}_std"] == pytest.approx(statistics.stdev(several))


def test_fewer_samples_make_every_run_smaller_and_none_is_repeated():
    _, planned = measure(store_of(range(40)), store_of(range(100, 111)), runs=3)
    assert planned.count == 3
    drawn = np.concatenate([sets.samples.flatten() for sets in planned])
    assert len(set(drawn.tolist())) == 9


def test_too_few_windows_are_not_computed_and_say_so():
    found, _ = measure(store_of(range(40)), store_of(range(5)), runs=3)
    assert not found.metrics
    assert found.not_computed["fvd_real"] == (
        "needs 2 windows on each side in every run, but there are 1"
    )


def test_without_samples_floor_and_ceiling_remain():
    found, _ = measure(store_of(range(40)))
    floor_and_ceiling = {f"{key}_{who}" for key in ("fvd", "kvd") for who in COMPARED[:2]}
    assert set(found.metrics) == floor_and_ceiling
    assert set(found.not_computed) == {"fvd_samples", "kvd_samples"}


@pytest.mark.parametrize(
    ("frames", "hop", "starts"),
    [
        (16, 16, []),
        (4, 16, []),
        (128, 16, [0, 16, 32, 48, 64, 80, 96, 112]),
        (32, 16, [0, 16]),
        (40, 16, [0, 16, 24]),
        (18, 16, [0, 2]),
        (32, 8, [0, 8, 16]),
    ],
)
def test_windows_along_a_video_include_the_last(frames, hop, starts):
    assert window_starts(frames, hop) == starts


def test_fvd_along_the_video_looks_at_its_own_frames_only():
    found, planned = measure(store_of(range(20, 40), frames=32), store_of([50] * 6, frames=32))
    (sets,) = planned
    mean, spread = moments(sets.reference.flatten().tolist())
    # Both sets get one level brighter in the second half: no difference between the halves.
    for key in ("fvd_samples", "fvd_samples_at_0", "fvd_samples_at_16"):
        assert found.metrics[key] == pytest.approx((50 - mean) ** 2 + spread**2)
    seen = network().features(pixels(10, 40)[None], [0, 16, 24])
    assert seen.shape == (1, 4, 1)
    assert seen.flatten().tolist() == pytest.approx([10.8, 10.0, 11.0, 11.5])


def test_a_cache_gives_the_same_numbers_without_looking_at_real_videos(tmp_path):
    store, samples = store_of(range(20, 40)), store_of(range(90, 96))
    plain, _ = measure(store, samples)
    eyes = [Eyes(), Eyes()]
    found = [measure(store, samples, eyes=e, cache=tmp_path / "c")[0].metrics for e in eyes]
    assert found[0] == found[1] == plain.metrics
    assert [e.seen for e in eyes] == [24, 12]
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_damaged_cache_is_redone_and_never_believed(tmp_path, damage):
    store = store_of(range(20, 40))
    plain, _ = measure(store, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        broken = bytearray(content)
        broken[-1] ^= 1
        other = next(one for one in whole if one != content)
        changed = {"flip": broken, "cut": content[:-3], "empty": b"", "swap": other}
        file.write_bytes(changed[damage])
    eyes = Eyes()
    again, _ = measure(store, eyes=eyes, cache=tmp_path)
    assert again.metrics == plain.metrics
    assert eyes.seen == 18
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.parametrize(
    ("other", "given"),
    [
        ({}, {"identity": "another"}),
        ({}, {"truncate": True}),
        ({}, {"seed": 1}),
        ({"fingerprint": "ef" * 32}, {}),
        ({"source": "repainted"}, {}),
        ({"frames": 32}, {}),
    ],
)
def test_a_cache_is_of_one_network_one_store_and_one_choice_of_windows(tmp_path, other, given):
    measure(store_of(range(20, 40)), cache=tmp_path)
    before = set(tmp_path.iterdir())
    seed = given.pop("seed", 0)
    measure(store_of(range(20, 40), **other), seed=seed, cache=tmp_path, **given)
    assert len(set(tmp_path.iterdir()) - before) == 2


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "mebt-16f", Protocol(frames=16, num_videos=5, runs=2))


NAMED = EvaluateConfig(num_videos=5, runs=2, protocol="mebt-16f", batch_size=4)


def test_a_named_protocol_is_what_was_published():
    assert PROTOCOLS["mebt-16f"].num_videos == 2048
    assert (PROTOCOLS["mebt-16f"].frames, PROTOCOLS["mebt-16f"].runs) == (16, 10)
    assert PROTOCOLS["mebt-128f"].num_videos == 512
    assert (PROTOCOLS["mebt-128f"].frames, PROTOCOLS["mebt-128f"].runs) == (128, 5)


def test_a_named_protocol_has_what_it_asks_for(small):
    store = store_of(range(10), frames=16)
    repeats = plan_repeats(store, store_of(range(10)), NAMED)
    assert (repeats.count, len(repeats.seeds)) == (5, 2)
    said = measure_fvd(Evaluation(), repeats, network(), pictures_of(store), NAMED)
    assert said["protocol"] == "mebt-16f"
    assert (said["num_videos"], said["runs"], said["seeds"]) == (5, 2, [0, 1])
    assert (said["split"], said["stride"], said["rounding"]) == ("test", 1, "to the nearest")


def test_what_is_missing_says_why():
    store, config = store_of(range(10)), EvaluateConfig(num_videos=4)
    repeats, gone = plan_repeats(store, None, config), Missing("it was not given")
    i3d = open_i3d(None, cache=None, truncate=False, device="cpu")
    for seeing, pictures, why in (
        (i3d, pictures_of(store), "needs the I3D network, and no --i3d was given: give i3d_"),
        (network(), gone, gone.why),
    ):
        found = Evaluation()
        assert measure_fvd(found, repeats, seeing, pictures, config) == {}
        assert set(found.not_computed) == {"fvd", "kvd"}
        assert found.not_computed["fvd"].startswith(why)


@pytest.mark.parametrize(
    ("windows", "frames", "samples", "message"),
    [
        (10, 16, 9, r"needs 10 samples \(5 for each of 2 runs\), but there are 9; set sample"),
        (9, 16, 10, r"two sets of 5 real windows .* has sets of 4 only"),
        (10, 4, 10, "compares windows of 16 frames, but those of tokens have 4"),
    ],
)
def test_a_named_protocol_never_makes_do_with_less(small, windows, frames, samples, message):
    with pytest.raises(TokenStoreError, match=message) as error:
        plan_repeats(store_of(range(windows), frames=frames), store_of(range(samples)), NAMED)
    assert "\n" not in str(error.value)
