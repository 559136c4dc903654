"""What a published MeBT's file tells of the tokens' size, and what is only likely."""

from pathlib import Path

import pytest

from pipeline.published.checkpoint import Foreign
from pipeline.published.mebt_checkpoint import PublishedMeBT, clip_window, likely_downsample


def published(**data: object) -> PublishedMeBT:
    nothing = Foreign(Path("mebt.ckpt"), "", {}, {})
    return PublishedMeBT(nothing, {}, data, (2, 3, 3), vqgan={}, mebt={})


@pytest.mark.parametrize(
    ("frames", "size", "num_stages", "factors", "is_guessed"),
    [
        (4, 12, 2, (2, 4, 4), False),
        (8, 12, 2, (4, 4, 4), False),
        (4, 12, 3, (4, 8, 8), True),  # Two stages would do.
        (6, 12, 2, (2, 4, 4), True),  # Three frames to a token are no power of two.
        (5, 12, 2, (2, 4, 4), True),
        (None, 12, 2, (2, 4, 4), True),
        (True, 12, 2, (2, 4, 4), True),
        (None, None, 0, (1, 1, 1), True),
    ],
)
def test_down_sampling_is_told_by_clips_that_agree_with_the_stages(
    frames: object, size: object, num_stages: int, factors: tuple[int, int, int], is_guessed: bool
) -> None:
    source = published(sequence_length=frames, resolution=size)
    assert likely_downsample(source, num_stages) == (factors, is_guessed)


def test_a_window_holds_what_is_known_of_the_clips() -> None:
    known = clip_window(published(sample_every_n_frames=3), (4, 8, 8))
    assert known == {"frames": 8, "stride": 3, "size": 24}
    unknown = clip_window(published(sample_every_n_frames=0), (4, 8, 4))
    assert unknown == {"frames": 8, "stride": None, "size": None}
