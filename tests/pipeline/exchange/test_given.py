"""Labels and states of ids of others: which frames windows are of, and files that name them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.exchange.given import window_frames
from pipeline.exchange.ids import Ids, Maker
from pipeline.exchange.windows import Cut
from pipeline.store.conditions import ConditionReader
from pipeline.store.reader import TokenStore
from stages.__main__ import cli

PLAIN, CAUSAL = (Maker("", 24, (4, 8, 8), causal) for causal in (False, True))


@pytest.mark.parametrize(
    ("ids", "cut", "maker", "first", "frames"),
    [
        ({}, Cut(3, 1, 1), None, 2, [2, 3, 4]),
        ({}, Cut(3, 2, 1), None, 1, [1, 3, 5]),
        ({}, Cut(2, 1, 1), PLAIN, 3, range(12, 20)),
        ({}, Cut(2, 2, 1), PLAIN, 0, [0, 1, 2, 3, 8, 9, 10, 11]),
        ({}, Cut(3, 1, 1), CAUSAL, 0, range(9)),
        ({}, Cut(3, 1, 1), CAUSAL, 2, range(8, 17)),
        ({"unit": 3, "are_windows": True}, Cut(1, 1, 1), None, 0, [0, 1, 2]),
        ({"unit": 3, "are_windows": True}, Cut(1, 1, 1), PLAIN, 0, range(12)),
        ({"unit": 3, "are_windows": True}, Cut(1, 1, 1), CAUSAL, 0, range(9)),
        ({"unit": 3, "frames": 17}, Cut(2, 1, 1), CAUSAL, 1, range(17, 51)),
        ({"frames": 1}, Cut(2, 15, 1), None, 4, [4, 19]),
    ],
)
def test_windows_are_of_the_frames_that_their_units_are_of(
    ids: dict[str, int], cut: Cut, maker: Maker | None, first: int, frames: Sequence[int]
) -> None:
    opened = Ids(place=Path(), videos=[], size=(2, 2), **ids)
    found = window_frames(np.array([first]), opened, cut, maker)
    assert found.tolist() == [list(frames)]


def imported(*words: object) -> Result:
    return CliRunner().invoke(cli, ["tokens", "import", *map(str, words)])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    drawn = np.random.default_rng(0)
    for name, length in (("a", 5), ("b", 7)):
        np.save(tmp_path / "videos" / f"{name}.npy", drawn.integers(0, 24, (length, 2, 2)))
    return tmp_path / "videos"


def test_videos_come_with_their_labels_and_latent_frames(videos: Path, tmp_path: Path) -> None:
    (labels := tmp_path / "labels.csv").write_text("video,label\na.npy,surfing\nnone.npy,x\n")
    rows = [f"b.npy,{frame},{10 * frame},{frame}" for frame in (0, 1, 2, 3, 5, 9)]
    (states := tmp_path / "states.csv").write_text("\n".join(["video,frame,turn.0,turn.1", *rows]))
    words = (videos, "--codebook-size", 24, "--frames", 2, "--hop", 2, "--out", tmp_path / "s")
    result = imported(*words, "--labels", labels, "--states", states)
    assert result.exit_code == 0, result.output
    for line in (
        "labels.csv: 1 label of 1 of 2 videos; without: b.npy",
        "labels.csv: 1 label also of videos that are not there: none.npy",
        "states.csv: turn (2) of 1 of 2 videos; without: a.npy",
        "states.csv: turn (2): not of 1 frames of windows of these videos",
        "states.csv: turn (2): also of 1 frames that are in no window",
    ):
        assert line in result.output
    store = TokenStore(tmp_path / "s")
    assert store.verify() == []
    read = ConditionReader(store, "train", ["label", "turn"]).read(range(5))
    assert read.labels is not None and read.labels.tolist() == [0, 0, -1, -1, -1]
    assert np.isnan(read.states["turn"][:2]).all()
    nan = np.nan
    expected = [[[0, 0], [10, 1]], [[20, 2], [30, 3]], [[nan, nan], [50, 5]]]
    np.testing.assert_array_equal(read.states["turn"][2:], expected)
    before = store.fingerprint
    assert imported(*words, "--labels", labels, "--states", states).exit_code == 0
    assert TokenStore(tmp_path / "s").fingerprint == before
    assert "another" in imported(*words, "--labels", labels).output
    assert imported(*words).exit_code == 1


def test_frames_of_which_nothing_or_not_all_is_known_are_counted(
    videos: Path, tmp_path: Path
) -> None:
    rows = ["b.npy,0,,", "b.npy,1,,nan", "b.npy,2,,1", *(f"b.npy,{n},{n},2" for n in (3, 5))]
    (states := tmp_path / "states.csv").write_text("\n".join(["video,frame,turn.0,turn.1", *rows]))
    words = (videos, "--codebook-size", 24, "--frames", 2, "--hop", 2, "--out", tmp_path / "s")
    result = imported(*words, "--states", states)
    assert result.exit_code == 0, result.output
    of = "frames of windows of these videos"
    for line in (f"turn (2): not of 3 {of}", f"turn (2): in part only of 1 {of}"):
        assert f"states.csv: {line}\n" in result.output


def test_windows_are_named_by_their_rows(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 24, (3, 2, 2, 2))
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "held.npy", ids)
    (labels := tmp_path / "labels.csv").write_text("video,label\n0,a\ntest/1,b\ntrain/2,c\n")
    (states := tmp_path / "states.csv").write_text("video,frame,turn\ntest/1,1,7\n")
    words = (tmp_path / "ids.npy", "--test", tmp_path / "held.npy", "--codebook-size", 24)
    words = (*words, "--labels", labels, "--states", states, "--out", tmp_path / "s")
    result = imported(*words)
    assert result.exit_code == 0, result.output
    store = TokenStore(tmp_path / "s")
    assert store.plan("train")["label"].to_pylist() == ["a", None, "c"]
    assert store.plan("test")["label"].to_pylist() == ["a", "b", None]
    turn = ConditionReader(store, "test", ["turn"]).read([1]).states["turn"]
    np.testing.assert_array_equal(turn, [[[np.nan], [7]]])


def test_files_of_other_videos_are_one_clear_line(videos: Path, tmp_path: Path) -> None:
    (labels := tmp_path / "labels.csv").write_text("video,label\nc.npy,surfing\n")
    words = (videos, "--codebook-size", 24, "--frames", 2, "--out", tmp_path / "s")
    result = imported(*words, "--labels", labels)
    assert result.exit_code == 1 and "labels.csv names none of the videos" in result.output
    assert not (tmp_path / "s").exists()
