"""Files of labels and states: what they say, and what of them is refused in one line."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.condition_files import CAPTION, LABEL, file_bytes, read_states, read_video_texts
from pipeline.errors import PipelineError
from pipeline.known_videos import matched, told

PLACE = Path("given.csv")


def parquet(columns: Mapping[str, object]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return buffer.getvalue()


def dictionary(texts: list[str]) -> pa.DictionaryArray:
    return pa.array(texts).dictionary_encode()


@pytest.mark.parametrize(
    "data",
    [
        b"video,label\na,surfing\nb,007\nc,\n",
        b"\xef\xbb\xbflabel,more,video\nsurfing,1,a\n007,2,b\n,3,c\n",
        b'video,label\r\n"a","surfing"\r\nb,007\r\nb,007\r\n',
        parquet({"video": ["a", "b", "c"], "label": ["surfing", "007", None]}),
        parquet({"label": dictionary(["surfing", "007"]), "video": dictionary(["a", "b"])}),
    ],
)
def test_labels_are_those_of_the_file(data: bytes) -> None:
    assert read_video_texts(PLACE, data, LABEL).texts == {"a": "surfing", "b": "007"}


def test_a_label_may_be_any_text_and_a_video_a_number() -> None:
    data = 'video,label\n7,"a, é"\n8,NA\n'.encode()
    assert read_video_texts(PLACE, data, LABEL).texts == {"7": "a, é", "8": "NA"}
    assert read_video_texts(PLACE, parquet({"video": [7], "label": [3]}), LABEL).texts == {"7": "3"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no CSV or Parquet that can be read"),
        (b"PAR1", "no CSV or Parquet that can be read"),
        (parquet({"video": ["a"], "label": ["x"]})[:-9], "no CSV or Parquet"),
        (b"\x80\x04\x95pickle", "no CSV or Parquet|no column video"),
        (b"name,label\na,x\n", "has no column video; it has name, label"),
        (b"video;label\na;x\n", "has no column video; it has video;label"),
        (b"video,label,label\na,x,y\n", "two columns of one name"),
        (
            b"video,label\na,x\nb\n",
            "that can be read: .*Expected 2 columns, got 1",
        ),
        (b"video,label\na,\xff\n", "no CSV or Parquet that can be read"),
        (b"video,label\na,x\na,y\n", "two labels of a"),
        (b"video,label\na,\n", "holds no label"),
        (b"video,label\na,\x1b[2J\n", r"\\x1b\[2J' of a is no label"),
        (b"video,label\na," + b"x" * 201, "is no label"),
        (parquet({"video": ["a"], "label": [0.5]}), "label must hold text, not double"),
        (parquet({"video": [["a"]], "label": ["x"]}), "video must hold text, not list"),
    ],
)
def test_what_are_no_labels_is_one_clear_line(data: bytes, said: str) -> None:
    with pytest.raises(PipelineError, match=said) as error:
        read_video_texts(PLACE, data, LABEL)
    assert str(error.value).startswith(str(PLACE)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b'video,caption,label\na," two\nlines, ""said""\n",1\nb,,2\n7,\xc3\xa9\x1b,\n',
        parquet({"caption": ['two\nlines, "said"', None, "é\x1b"], "video": ["a", "b", "7"]}),
    ],
)
def test_captions_may_have_lines_and_any_letters(data: bytes) -> None:
    found = read_video_texts(PLACE, data, CAPTION)
    assert found.texts == {"a": 'two\nlines, "said"', "7": "é\x1b"}
    assert found.said() == []


def test_captions_that_are_too_long_are_cut_off_and_counted() -> None:
    videos = [f"v{n}" for n in range(7)]
    data = parquet({"video": [*videos, "w"], "caption": ["é" * 10_001] * 7 + ["é" * 10_000]})
    found = read_video_texts(PLACE, data, CAPTION)
    assert set(found.texts.values()) == {"é" * 10_000} and len(found.texts) == 8
    first, *_, last = found.said()
    assert first == "given.csv: v0: its caption of 10,001 characters is cut off after 10,000"
    assert last == "2 more are no captions, or cut off" and len(found.said()) == 6


def test_lines_of_captions_may_lie_anywhere_in_a_large_csv() -> None:
    rows = [f'v{n},"{n}{"-" * 997}\n{n}"\n' for n in range(3000)]
    found = read_video_texts(PLACE, "".join(["video,caption\n", *rows]).encode(), CAPTION).texts
    assert found == {f"v{n}": f"{n}{'-' * 997}\n{n}" for n in range(3000)}


def no_text() -> pa.Array:
    """Returns a column of text that is no UTF-8."""
    buffers = pa.array([b"\xff\xfe"]).buffers()
    return pa.Array.from_buffers(pa.string(), 1, buffers)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"video,label\na,x\n", "has no column caption; it has video, label"),
        (b"video,caption\na,x\na,y\n", "two captions of a; give one row"),
        (b"video,caption\na, \n", "holds no caption"),
        (b"video,caption\na,\xff\n", "no CSV or Parquet that can be read"),
        (parquet({"video": ["a"], "caption": no_text()}), "no CSV or Parquet that can be read"),
        (parquet({"video": ["a"], "caption": [["x", "y"]]}), "caption must hold text, not list"),
    ],
)
def test_what_are_no_captions_is_one_clear_line(data: bytes, said: str) -> None:
    with pytest.raises(PipelineError, match=said) as error:
        read_video_texts(PLACE, data, CAPTION)
    assert str(error.value).startswith(str(PLACE)) and "\n" not in str(error.value)


CSV = b"video,frame,time,grip,action.1,action.0\na,3,0.1,9,31,30\nb,0,0,,-1,0.5\na,1,0.2,7,11,10\n"
LISTS = {
    "video": ["b", "a", "a"],
    "frame": pa.array([0, 1, 3], pa.int16()),
    "time": ["late", "later", "last"],
    "action": pa.array([[0.5, -1], [10, 11], [30, 31]], pa.list_(pa.float32(), 2)),
    "grip": [None, 7, 9],
}


@pytest.mark.parametrize("data", [CSV, parquet(LISTS)])
def test_numbers_are_those_of_the_frames_asked_for(data: bytes) -> None:
    file = read_states(PLACE, data)
    assert dict(file.widths) == {"action": 2, "grip": 1}
    assert file.videos.keys() == {"a", "b"}
    a, b = file.videos["a"], file.videos["b"]
    rows, known = a.find(np.array([[0, 1], [3, 9]]))
    assert known.tolist() == [[False, True], [True, False]]
    np.testing.assert_array_equal(a.values["action"][rows[known]], [[10, 11], [30, 31]])
    np.testing.assert_array_equal(a.values["grip"][rows[known]], [[7], [9]])
    np.testing.assert_array_equal(b.values["action"], [[0.5, -1]])
    assert np.isnan(b.values["grip"]).all()


def test_names_of_robots_keep_their_dots_and_a_missing_list_is_not_known() -> None:
    states = pa.array([[1.0, 2.0], None])
    data = parquet({"video": ["a", "a"], "frame": [0, 1], "observation.state": states})
    values = read_states(PLACE, data).videos["a"].values["observation.state"]
    np.testing.assert_array_equal(values, [[1, 2], [np.nan, np.nan]])


FRAMES = {"video": ["a", "a"], "frame": [0, 1]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"video,grip\na,1\n", "no column frame"),
        (b"video,frame\na,1\n", "no numbers of frames"),
        (b"video,frame,time\na,1,1\n", "no numbers of frames"),
        (b"video,frame,grip\n", "no numbers of frames"),
        (b"video,frame,grip\na,1.5,1\n", "column frame must hold whole numbers"),
        (b"video,frame,grip\na,x,1\n", "column frame must hold whole numbers"),
        (b"video,frame,grip\na,1,x\n", "column grip must hold numbers, not string"),
        (b"video,frame,grip\na,1,1\na,2,inf\n", "column grip is infinite in row 2"),
        (b"video,frame,grip\na,1,1e300\n", "column grip is infinite in row 1"),
        (b"video,frame,grip\na,1,1\na,1,2\n", "frame 1 of a twice"),
        (b"video,frame,grip.0,grip.2\na,1,1,2\n", "grip.0 and so on must be numbered"),
        (b"video,frame,grip,grip.0\na,1,1,2\n", "grip.0 and so on must be numbered"),
        (b"video,frame,label\na,1,2\n", "label names the label of a video"),
        (parquet({**FRAMES, "grip": [[1, 2], [3]]}), r"lists of one length, not of \[2, 1\]"),
        (parquet({**FRAMES, "grip": [[], []]}), r"lists of one length, not of \[0\]"),
        (parquet({**FRAMES, "grip": [["x"], ["y"]]}), "must hold numbers, not string"),
    ],
)
def test_what_are_no_states_is_one_clear_line(data: bytes, said: str) -> None:
    with pytest.raises(PipelineError, match=said) as error:
        read_states(PLACE, data)
    assert str(error.value).startswith(str(PLACE)) and "\n" not in str(error.value)


def test_a_small_file_that_takes_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = parquet({"video": ["a" * 1000] * 5000, "label": ["x"] * 5000})
    assert len(data) < 5000
    monkeypatch.setattr("pipeline.condition_files.MAX_BYTES", 1 << 20)
    with pytest.raises(PipelineError, match="takes more than 1,048,576 bytes"):
        read_video_texts(PLACE, data, LABEL)
    with pytest.raises(PipelineError, match="give a Parquet"):
        read_video_texts(PLACE, b"video,label\n" * 50_000, LABEL)


def test_what_is_no_file_or_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match="is no file of labels, captions or states"):
        file_bytes(Path("/dev/zero"))
    with pytest.raises(PipelineError, match="is no file of labels, captions or states"):
        file_bytes(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"video,label\n")
    assert file_bytes(tmp_path / "labels.csv") == b"video,label\n"
    monkeypatch.setattr("pipeline.condition_files.MAX_BYTES", 11)
    with pytest.raises(PipelineError, match="has 12 bytes, more than 11"):
        file_bytes(tmp_path / "labels.csv")


@pytest.mark.parametrize("name", ["train/x/a#2", "train/x/a", "x/a#2", "x/a"])
def test_a_video_is_known_with_and_without_its_split_and_piece(name: str) -> None:
    videos = [("test", "other"), ("train", "train/x/a#2")]
    assert matched(PLACE, {name: 1, "gone": 2}, videos) == {videos[1]: 1}


def test_a_file_of_other_videos_is_refused() -> None:
    with pytest.raises(PipelineError, match="names none of the videos: it has b, they are train/a"):
        matched(PLACE, {"b": 1, "c": 2}, [("train", "train/a")])


def test_what_is_not_known_is_counted() -> None:
    videos = [("train", "a"), ("train", "b"), ("train", "c"), ("test", "d")]
    lines = told("f: 2 labels", {"a": 1, "d": 2, "e": 3}, {videos[0], videos[3]}, videos)
    assert lines == [
        "f: 2 labels of 2 of 4 videos; without: b and 1 more",
        "f: 2 labels also of videos that are not there: e",
    ]
