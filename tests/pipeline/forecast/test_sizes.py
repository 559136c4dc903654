"""Sizes that suit footage of any shape, and which make frames larger."""

from pathlib import Path

import pytest

from pipeline.forecast.sizes import enlarged, keep_shape
from pipeline.params.choose import Machine, fitted
from pipeline.params.survey import Seen
from pipeline.size import Size
from pipeline.video.tiles import ExtractConfig

WIDE = [Seen(Path("a"), 114, 64, 25.0, 100), Seen(Path("b"), 48, 32, 25.0, 100)]
WIDE += WIDE[1:]


@pytest.mark.parametrize(
    ("footage", "advised"),
    [
        (WIDE, [32, 48]),
        (WIDE[:1], [64, 112]),  # Whole tokens of 8 pixels.
        ([Seen(Path("a"), 60, 90, 25.0, 100)], [80, 56]),
        ([Seen(Path("a"), 6, 90, 25.0, 100)], [120, 8]),
    ],
)
def test_two_numbers_are_advised_where_two_are_set(footage: list[Seen], advised: list[int]) -> None:
    choice = fitted(footage, Machine(2, 8.0))
    square = choice.values["extract"]["size"]
    keep_shape(choice, footage, extract__size=64, tokenize__size=(16, 24))
    assert choice.values["extract"]["size"] == square
    assert choice.values["tokenize"]["size"] == advised
    assert "Most are " in choice.reasons["tokenize.size"]


@pytest.mark.parametrize(
    ("size", "extract", "said"),
    [
        (32, None, []),
        ((32, 48), None, []),
        (40, None, ["frames of 2 of 3 videos are enlarged to tokenize.size 40"]),
        ((32, 56), None, ["frames of 2 of 3 videos are enlarged to tokenize.size (32, 56)"]),
        (32, ExtractConfig(size=65), ["frames of 3 of 3 videos are enlarged to extract.size 65"]),
        (32, ExtractConfig(size=32), []),
        (
            (24, 40),
            ExtractConfig(size=32, tile=16),
            [
                "frames of extract.size 32 are enlarged to tokenize.size (24, 40)",
                "frames of 3 of 3 videos are enlarged to extract.size 32",
            ],
        ),
    ],
)
def test_frames_that_grow_are_told(
    size: Size, extract: ExtractConfig | None, said: list[str]
) -> None:
    assert list(enlarged(WIDE, size, extract)) == said
