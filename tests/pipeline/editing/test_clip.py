"""A clip of any size, rate and length, as the model sees it; boxes and masks of it."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.editing import clip as clip_module
from pipeline.editing.clip import read_clip
from pipeline.editing.edits import between, continued, inside
from pipeline.editing.shape import WindowShape
from pipeline.errors import ConfigError, FrameError

SHAPE = WindowShape(grid=(3, 2, 2), downsample=(4, 8, 8), causal=False, fps=10.0)


def write(path: Path, count: int, *, height: int = 32, width: int = 48, rate: int = 10) -> Path:
    """Writes frames in whose blue stands their number, and in red and green their place."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, height, width))))
        container.mux(stream.encode())
    return path


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    frame = np.empty((height, width, 3), np.uint8)
    frame[..., 0], frame[..., 1] = np.arange(width) * 4, np.arange(height)[:, None] * 4
    frame[..., 2] = number
    return frame


def test_the_middle_is_seen_and_resized(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 6), SHAPE, {})
    assert clip.frames.shape == (6, 16, 16, 3)
    assert clip.seen == (8, 0, 40, 32)
    assert clip.frames[:, :, :, 2].tolist() == [[[n] * 16] * 16 for n in range(6)]
    # In the middle, two pixels of one another and a part of their neighbours: 4 * (x + 1/2).
    assert clip.frames[0, 5, 5:8, 0].tolist() == [4 * (8 + 2 * x) + 2 for x in (5, 6, 7)]
    assert clip.said[0].endswith(
        "6 frames, 10 a second; of its 48x32 pixels 32x32 at 8,0 are seen, as 16x16"
    )
    assert not clip.outside.any()


def test_the_rate_of_the_model_is_kept(tmp_path: Path) -> None:
    fast = read_clip(write(tmp_path / "fast.mkv", 12, rate=20), SHAPE, {})
    assert fast.frames[:, 0, 0, 2].tolist() in ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11])
    assert fast.fps == 10
    slow = read_clip(write(tmp_path / "slow.mkv", 12, rate=5), SHAPE, {})
    assert slow.frames[:, 0, 0, 2].tolist() == list(range(12))
    assert "5 a second, where the model knows 10" in slow.said[0]


def test_where_the_model_knows_no_rate_the_params_say_it(tmp_path: Path) -> None:
    path, unknown = write(tmp_path / "a.mkv", 12), replace(SHAPE, fps=None)
    assert len(read_clip(path, unknown, {}).frames) == 12
    assert len(read_clip(path, unknown, {"fps": 5.0}).frames) == 6
    assert len(read_clip(path, SHAPE, {"fps": 5.0}).frames) == 12


def test_a_crop_is_seen_alone_and_may_reach_beyond(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", 2)
    assert read_clip(path, SHAPE, {}, crop=(3, 5, 16, 16)).frames[1].tolist() == (
        picture(1)[5:21, 3:19].tolist()
    )
    wide = read_clip(path, SHAPE, {}, crop=(-8, 0, 16, 16))
    assert (wide.frames[0, :, 8:] == picture(0)[:16, :8]).all()
    assert wide.outside.tolist() == [[True] * 8 + [False] * 8] * 16
    small = read_clip(path, SHAPE, {}, crop=(-1, -1, 50, 34))  # 34 by 34 of it in the middle.
    assert small.outside.any(1).tolist() == [True] + [False] * 14 + [True]
    for crop in ((48, 0, 8, 8), (0, -8, 8, 8)):
        with pytest.raises(FrameError, match=r"shows nothing of .*a.mkv, which is 48x32 pixels"):
            read_clip(path, SHAPE, {}, crop=crop)
    with pytest.raises(FrameError, match=r"shows too little"):
        read_clip(path, SHAPE, {}, crop=(0, 0, 200, 8))


def test_a_box_marks_all_that_it_touches(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 2), SHAPE, {})
    marked = clip.box((9, 3, 2, 1))  # Columns 9 and 10 of 8 … 39, two to a pixel; row 3.
    assert np.argwhere(marked).tolist() == [[1, 0], [1, 1]]
    assert clip.box((0, 0, 48, 32)).all()
    with pytest.raises(FrameError, match=r"box 40,0,9,9 lies outside .*a.mkv, which is 48x32"):
        clip.box((40, 0, 9, 9))
    with pytest.raises(FrameError, match=r"box 0,0,8,32 marks nothing of what the model sees"):
        clip.box((0, 0, 8, 32))


def test_a_mask_is_white_where_to_draw(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 2), SHAPE, {})
    pixels = np.zeros((32, 48), np.uint8)
    pixels[31, 39], pixels[0] = 128, 127
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.argwhere(clip.mask(tmp_path / "mask.png")).tolist() == [[15, 15]]
    Image.new("L", (48, 31), 255).save(tmp_path / "small.png")
    with pytest.raises(FrameError, match=r"is 48x31 pixels, but .*a.mkv is 48x32; a mask has"):
        clip.mask(tmp_path / "small.png")
    Image.new("L", (48, 32), 127).save(tmp_path / "black.png")
    with pytest.raises(FrameError, match=r"black.png is black, so there is nothing to draw"):
        clip.mask(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("white")
    with pytest.raises(FrameError, match=r"is not a readable image"):
        clip.mask(tmp_path / "text.png")


def test_too_long_a_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_module, "MOST_BYTES", 5 * 16 * 16 * 3)
    assert len(read_clip(write(tmp_path / "five.mkv", 5), SHAPE, {}).frames) == 5
    with pytest.raises(FrameError, match=r"six.mkv has more than 5 frames, too many at once"):
        read_clip(write(tmp_path / "six.mkv", 6), SHAPE, {})


def test_what_follows_is_planned_at_the_end(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 14), SHAPE, {})
    edit = continued(clip, 5, SHAPE)
    assert edit.frames.shape[0] == 19
    assert np.flatnonzero(edit.hidden.all((1, 2))).tolist() == list(range(14, 19))
    assert edit.span == range(10, 22)
    frames, hidden = edit.seen
    assert len(frames) == 12 and hidden.all((1, 2)).tolist() == [False] * 4 + [True] * 8
    assert continued(clip, 5, SHAPE, kept=5).span == range(6, 22)
    back = continued(clip, 5, SHAPE, backward=True)
    assert len(back.frames) == 22  # Five new frames become eight.
    assert np.flatnonzero(back.hidden.all((1, 2))).tolist() == list(range(8))
    assert (back.frames[8:] == clip.frames).all()
    assert "8 new frames, not 5: whole latent frames are drawn" in back.said
    with pytest.raises(FrameError, match=r"has 14 frames, but 16 of them are to be kept"):
        continued(clip, 5, WindowShape((9, 2, 2), (4, 8, 8), False, 10.0), kept=15)
    with pytest.raises(
        ConfigError, match=r"9 kept frames leave no room for new ones: a window has"
    ):
        continued(clip, 5, SHAPE, kept=9)


def test_between_two_clips_whole_latent_frames_are_drawn(tmp_path: Path) -> None:
    a = read_clip(write(tmp_path / "a.mkv", 6), SHAPE, {})
    b = read_clip(write(tmp_path / "b.mkv", 9), SHAPE, {})
    edit = between(a, b, 3, SHAPE)
    assert np.flatnonzero(edit.hidden.all((1, 2))).tolist() == [6, 7, 8, 9]
    assert (edit.frames[:6] == a.frames).all() and (edit.frames[10:] == b.frames).all()
    assert edit.span == range(2, 14)
    short = read_clip(write(tmp_path / "short.mkv", 3), SHAPE, {})
    with pytest.raises(FrameError, match=r"short.mkv has 3 frames, but 4 of them are to be kept"):
        between(a, short, 3, SHAPE)
    other = read_clip(write(tmp_path / "other.mkv", 8, rate=5), SHAPE, {})
    with pytest.raises(FrameError, match=r"plays at 10 frames a second, but .*other.mkv at 5"):
        between(a, other, 3, SHAPE)


def test_inside_of_a_clip_the_tokens_that_are_touched_are_drawn(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 14), SHAPE, {})
    pixels = np.zeros((16, 16), np.bool_)
    pixels[3, 9] = True
    edit = inside(clip, SHAPE, frames=slice(3, 8), pixels=pixels)
    assert np.argwhere(edit.hidden.any((1, 2))).ravel().tolist() == list(range(3, 11))
    assert np.argwhere(edit.hidden[5]).min(0).tolist() == [0, 8]
    assert np.argwhere(edit.hidden[5]).max(0).tolist() == [7, 15]
    assert edit.said[-1].startswith("drawn anew: frames 3:11, 8x8 pixels at 8,0, 2 of 8 tokens; as")
    assert "asked for: frames 3:8, 1x1 pixels at 9,3" in edit.said[-1]
    whole = inside(clip, SHAPE, frames=slice(4, 8), pixels=None)
    assert "asked for" not in whole.said[-1]
    thinned = inside(clip, SHAPE, frames=slice(None), pixels=None, every=2)
    kept = np.flatnonzero(~thinned.hidden.any((1, 2))).tolist()
    assert kept == [0, 1, 2, 3, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (slice(0, 15), "frames 0:15 are not in .*a.mkv, which has 14"),
        (slice(14, None), "frames 14:14 are not in"),
        (slice(5, 5), "frames 5:5 are not in"),
        (slice(9, 5), "frames 9:5 are not in"),
    ],
)
def test_frames_outside_are_refused(tmp_path: Path, frames: slice, said: str) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 14), SHAPE, {})
    with pytest.raises(FrameError, match=said):
        inside(clip, SHAPE, frames=frames, pixels=None)


def test_nothing_and_everything_are_refused(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.mkv", 14), SHAPE, {})
    with pytest.raises(ConfigError, match=r"nothing is asked for, so there is nothing to draw"):
        inside(clip, SHAPE, frames=slice(None), pixels=None)
    everything = np.ones((16, 16), np.bool_)
    for pixels, frames in (
        (everything, slice(None)),
        (None, slice(2, 14)),
        (everything, slice(3, None)),
    ):
        with pytest.raises(
            ConfigError, match=r"all would be drawn and nothing kept, in tokens of 4"
        ):
            inside(clip, SHAPE, frames=frames, pixels=pixels)
    assert inside(clip, SHAPE, frames=slice(4, 14), pixels=everything).hidden.any()
