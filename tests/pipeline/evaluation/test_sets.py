from itertools import product

import numpy as np
import pytest

from pipeline.errors import TokenStoreError
from pipeline.evaluation.sets import two_halves
from pipeline.video.tiles import ExtractConfig, tiles
from tests.pipeline.evaluation.small import choose, draw, small_store, store_of


@pytest.fixture
def store():
    return small_store()


def test_the_two_sets_of_windows_are_the_rows_that_were_drawn(store):
    sets = choose(store)
    for rows, tokens in zip(sets.rows, (sets.reference, sets.real), strict=True):
        np.testing.assert_array_equal(tokens, store.tokens["test"][rows])
    assert sets.count == 6


def test_every_shard_is_read_at_most_once_per_set(store):
    choose(store)
    assert all(store.shards_read.count(shard) <= 2 for shard in store.shards_read)


def test_few_samples_make_all_sets_small(store):
    sets = choose(store, store_of({"samples": draw(4)}))
    assert sets.count == 4
    assert len(sets.held_out()) == 12
    assert sets.protocol()["num_videos"] == 4
    assert sets.protocol()["num_real_windows"] == 12
    assert sets.protocol()["num_source_videos"] == 8
    assert sets.protocol()["real_sets"].startswith("two, of different videos")


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


def test_one_long_video_is_cut_in_time():
    sets = choose(store_of({"test": draw(9)}, {"test": ["only"] * 9}))
    assert (len(sets.reference), len(sets.real)) == (3, 3)
    assert sets.protocol()["real_sets"] == "two, of different times of the one scene"


def halves_of(videos, *, limit, seed):
    return two_halves(videos, [0] * len(videos), span=16, limit=limit, seed=seed)


VIDEOS = [f"v{video}" for video in range(7) for _ in range(5)]


def test_halves_share_no_video():
    halves = halves_of(VIDEOS, limit=99, seed=0)
    first, second = ({VIDEOS[row] for row in half} for half in halves)
    assert (len(first), len(second)) == (4, 3)
    assert not first & second


def test_halves_together_hold_every_window_once():
    first, second = halves_of(VIDEOS, limit=99, seed=0)
    assert sorted(first + second) == list(range(35))


def test_every_video_has_its_turn_before_one_comes_again():
    first, _ = halves_of(VIDEOS, limit=99, seed=0)
    for turn in range(5):
        assert len({VIDEOS[row] for row in first[4 * turn : 4 * turn + 4]}) == 4


def test_a_smaller_limit_keeps_the_beginning():
    whole, part = (halves_of(VIDEOS, limit=limit, seed=3) for limit in (99, 6))
    assert part == (whole[0][:6], whole[1][:6])


def test_the_seed_draws_the_halves():
    assert halves_of(VIDEOS, limit=9, seed=1) == halves_of(VIDEOS, limit=9, seed=1)
    assert halves_of(VIDEOS, limit=9, seed=1) != halves_of(VIDEOS, limit=9, seed=2)


def overlap(one, two):
    """Says whether two windows (source, box, first frame) of 16 frames share a pixel."""
    (scene_1, box_1, start_1), (scene_2, box_2, start_2) = one, two
    far_apart = any(box_1[i] >= box_2[i + 2] or box_2[i] >= box_1[i + 2] for i in (0, 1))
    return scene_1 == scene_2 and abs(start_1 - start_2) < 16 and not far_apart


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("clip_frames", [24, None])
def test_overlapping_tiles_share_no_pixel_with_the_other_half(sources, clip_frames):
    boxes = tiles(60, 40, ExtractConfig(tile=20, tile_hop=10, clip_frames=clip_frames))
    videos, starts, windows = [], [], []
    for source, (suffix, box), first in product("ab"[:sources], boxes.items(), range(0, 81, 8)):
        clip = first // clip_frames * clip_frames if clip_frames else 0
        if clip_frames and first + 16 > clip + clip_frames:
            continue  # A window stays inside its clip.
        videos.append(f"test/{source}{suffix}" + (f"-f{clip:05d}" if clip_frames else ""))
        starts.append(first - clip)
        windows.append((source, box, first))
    first, second = two_halves(videos, starts, span=16, limit=999, seed=0)
    for one, two in product(first, second):
        assert not overlap(windows[one], windows[two])
    assert min(len(first), len(second)) >= len(videos) / 4


def test_windows_of_one_video_are_of_different_times():
    first, second = two_halves(["v"] * 50, range(50), span=16, limit=99, seed=0)
    assert (len(first), len(second)) == (17, 18)  # The others lie across the cut.
    assert max(first) + 16 <= min(second)


def test_windows_that_all_overlap_leave_the_second_half_empty():
    first, second = two_halves(["a", "a", "a"], [0, 1, 2], span=4, limit=2, seed=0)
    assert (len(first), second) == (2, [])


def test_one_long_video_among_many_short_ones_takes_no_turn_of_each() -> None:
    """Its windows times their number would be a billion turns."""
    videos = [f"short{i}" for i in range(30_000)] + ["long"] * 30_000
    first, second = two_halves(videos, [0] * len(videos), span=16, limit=40_000, seed=0)
    with_it, without = sorted((first, second), key=max, reverse=True)
    assert len(without) in (15_000, 15_001)
    assert max(without) < 30_000
    assert len(with_it) == 40_000
    assert sum(row >= 30_000 for row in with_it[:15_000]) == 1  # It has one turn among all others.
