"""Tokens laid over frames: outward, beginning where what is drawn begins, with frames around."""

import itertools

import numpy as np
import pytest

from pipeline.editing.shape import WindowShape, choose_span
from pipeline.errors import ConfigError

PLAIN = WindowShape(grid=(5, 3, 2), downsample=(4, 8, 16), causal=False, fps=None)
CAUSAL = WindowShape(grid=(5, 3, 2), downsample=(4, 8, 16), causal=True, fps=None)


@pytest.mark.parametrize(("shape", "frames"), [(PLAIN, 20), (CAUSAL, 17)])
def test_a_window_has_so_many_frames(shape: WindowShape, frames: int) -> None:
    assert shape.size == (24, 32)
    assert shape.frames(5) == frames
    assert shape.latents(frames) == 5
    assert shape.latents(frames - 1) == 5
    assert shape.latents(frames + 1) == 6


@pytest.mark.parametrize("shape", [PLAIN, CAUSAL])
def test_a_token_is_marked_if_one_of_its_pixels_is(shape: WindowShape) -> None:
    length = shape.frames(3)
    for frame, row, column in itertools.product(range(length), (0, 7, 8, 23), (0, 15, 16, 31)):
        pixels = np.zeros((length, 24, 32), np.bool_)
        pixels[frame, row, column] = True
        tokens = shape.to_tokens(pixels)
        assert tokens.shape == (3, 3, 2)
        assert np.argwhere(tokens).tolist() == [
            [shape.latents(frame + 1) - 1, row // 8, column // 16]
        ]
        back = shape.to_pixels(tokens)
        assert back.shape == pixels.shape
        assert back[pixels].all()
        assert back.sum() == (1 if shape.causal and not frame else 4) * 8 * 16


@pytest.mark.parametrize(
    ("new", "total", "span"),
    [
        (range(20, 24), 24, range(4, 24)),  # Goes on: four latent frames before.
        (range(21, 25), 25, range(5, 25)),  # Begins where the tokens of what is new do.
        (range(20, 23), 23, range(4, 24)),  # The last latent frame is not used up.
        (range(0, 4), 30, range(0, 20)),
        (range(40, 44), 100, range(32, 52)),  # Two before, two after.
        (range(8, 12), 14, range(0, 12)),  # No whole latent frame after.
        (range(2, 5), 7, range(2, 6)),
        (range(20, 60), 60, range(12, 60)),  # More than a window: two of context.
        (range(20, 60), 90, range(16, 64)),  # One on each side.
        (range(0, 7), 7, range(0, 8)),
    ],
)
def test_the_model_sees_what_is_around(new: range, total: int, span: range) -> None:
    assert choose_span(new, total, PLAIN, 2) == span


@pytest.mark.parametrize(
    ("new", "total", "span"),
    [
        (range(20, 24), 24, range(7, 24)),
        (range(0, 5), 30, range(0, 17)),
        (range(40, 44), 100, range(35, 52)),
        (range(5, 21), 60, range(4, 21)),  # One frame alone, then what is new.
        (range(5, 22), 60, range(5, 22)),  # There is no room for that.
    ],
)
def test_a_causal_window_begins_with_one_frame(new: range, total: int, span: range) -> None:
    assert choose_span(new, total, CAUSAL, 2) == span


@pytest.mark.parametrize("shape", [PLAIN, CAUSAL])
def test_tokens_fit_every_span(shape: WindowShape) -> None:
    for total, start, count in itertools.product(range(1, 30, 3), range(0, 24, 5), range(1, 17)):
        if start + count > total:
            continue
        new = range(start, start + count)
        span = choose_span(new, total, shape, 2)
        assert 0 <= span.start <= start and span.stop >= new.stop
        assert shape.frames(shape.latents(len(span))) == len(span)
        assert span.stop - total < 4
        first = shape.latents(start - span.start + 1) - 1
        assert shape.frames(first) == start - span.start if first else start == span.start
        assert len(span) <= shape.frames(5) or count > 12


def test_more_than_a_causal_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="18 new frames do not fit into the window of 17"):
        choose_span(range(3, 21), 40, CAUSAL, 2)
