"""A video that goes on: what is drawn from what, and which frames of it are shown."""

import numpy as np
import pytest

from pipeline.pixels import Bytes
from pipeline.play.video import AFTER, BEFORE, Draw, Tokens, Video, painted


class Drawer:
    """Draws latent frame i as the number i; notes by what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], Draw]] = []

    def __call__(self, known: Tokens, by: Draw) -> Tokens:
        self.asked.append((known[:, 0, 0].tolist(), by))
        first = known[-1, 0, 0] + 1 if len(known) else 0
        return np.arange(first, first + len(by.actions) - len(known)).reshape(-1, 1, 1)


class Decoder:
    """Decodes latent frame i to frames of 10 i, 10 i + 1, … ; notes what it was given."""

    def __init__(self, each: int, *, causal: bool) -> None:
        self.each, self.causal = each, causal
        self.given: list[list[int]] = []

    def __call__(self, tokens: Tokens) -> Bytes:
        self.given.append(tokens[:, 0, 0].tolist())
        counts = [1 if self.causal and not i else self.each for i in range(len(tokens))]
        pairs = zip(self.given[-1], counts, strict=True)
        numbers = [10 * token + i for token, count in pairs for i in range(count)]
        return np.array(numbers, np.uint8)[:, None, None, None].repeat(3, axis=3)


def video(decoder: Decoder, *, count: int, window: int = 6) -> tuple[Video, Drawer]:
    drawer = Drawer()
    made = Video(
        *(drawer, decoder, (window, 1, 1)),
        count=count,
        causal=decoder.causal,
        seed=3,
        label=None,
    )
    return made, drawer


def numbers(frames: Bytes) -> list[int]:
    return [int(number) for number in frames[:, 0, 0, 0]]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("each", [1, 4])
def test_every_frame_is_shown_once_and_in_order(count: int, each: int) -> None:
    watched, drawer = video(Decoder(each, causal=False), count=count)
    shown = [watched.next_frames(None, 1.0) for _ in range(4)]
    assert [len(frames) for frames in shown] == [count * each] * 4
    wanted = [10 * token + i for token in range(4 * count) for i in range(each)]
    assert np.concatenate([numbers(frames) for frames in shown]).tolist() == wanted
    assert [by.number for _, by in drawer.asked] == [0, 1, 2, 3]


def test_it_is_drawn_from_as_much_as_a_window_holds() -> None:
    watched, drawer = video(Decoder(1, causal=False), count=2)
    for action in (4, 5, None, 6, 7):
        watched.next_frames(action, 0.5)
    assert [known for known, _ in drawer.asked] == [
        *([], [0, 1, 2], [1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8])
    ]
    assert drawer.asked[1][1] == Draw(3, None, 1, 0.5, (4, 4, 4, 5, 5))
    assert drawer.asked[4][1].actions == (None, None, 6, 6, 7, 7)


def test_frames_are_decoded_with_what_is_beside_them_and_little_is_kept() -> None:
    decoder = Decoder(1, causal=False)
    watched, _ = video(decoder, count=2)
    for _ in range(9):
        watched.next_frames(1, 1.0)
    # 16 and 17 are shown, two are decoded before them and one behind.
    assert decoder.given[-1] == [14, 15, 16, 17, 18]
    assert len(watched.tokens) == len(watched.actions) == 6 + BEFORE + AFTER


def test_a_causal_video_is_decoded_from_its_beginning_and_ends_with_the_window() -> None:
    decoder = Decoder(4, causal=True)
    watched, drawer = video(decoder, count=4)
    shown = [numbers(watched.next_frames(None, 1.0)) for _ in range(3)]
    assert shown == [
        [0, *(10 * token + i for token in (1, 2, 3) for i in range(4))],
        [10 * token + i for token in (4, 5) for i in range(4)],
        [],
    ]
    assert decoder.given == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert len(drawer.asked) == 2


def test_a_causal_video_may_begin_with_its_first_frame_alone() -> None:
    watched, _ = video(Decoder(4, causal=True), count=1)
    shown = [numbers(watched.next_frames(None, 1.0)) for _ in range(3)]
    assert shown == [[0], [10, 11, 12, 13], [20, 21, 22, 23]]


def test_a_window_of_one_latent_frame_is_shown_too() -> None:
    watched, drawer = video(Decoder(2, causal=False), count=1, window=1)
    watched.next_frames(None, 1.0)
    assert len(watched.next_frames(None, 1.0)) == 2
    assert [known for known, _ in drawer.asked] == [[], []]


def test_tokens_are_painted_in_colours_of_their_own() -> None:
    frames = painted(np.arange(24).reshape(1, 4, 6), 24, 3)
    assert frames.shape == (1, 12, 18, 3)
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) == 24
    assert (frames[0, :3, :3] == frames[0, 0, 0]).all()
