"""Labels and states of videos: from extract's tables, folders and files into a store, and out."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline.storage.bucket import Bucket
from pipeline.storage.sealed import to_parquet
from pipeline.store.conditions import ConditionReader
from pipeline.store.layout import PLAN
from pipeline.store.reader import TokenStore
from stages.__main__ import cli
from tests.helpers.small import Flow, content


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """Frames of six videos; only read them."""
    flow = Flow(tmp_path_factory.mktemp("conditions"))
    flow.ok("extract")
    return flow


@pytest.fixture
def flow(frames: Flow, tmp_path: Path) -> Flow:
    return frames.copy(tmp_path / "flow")


def tokens(*words: object) -> Result:
    return CliRunner().invoke(cli, ["tokens", *map(str, words)])


def write_csv(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def videos_in(flow: Flow) -> dict[str, list[int]]:
    """Returns the numbers of the frames of each video, by its name in a plan."""
    return {
        f"{folder.parent.name}/{folder.name}": [
            int(file.stem.rpartition("_")[2]) for file in sorted(folder.glob("*.png"))
        ]
        for folder in sorted((flow.root / "frames").glob("[!.]*/*/"))
    }


def number(video: str, frame: int) -> int:
    return 1000 * int("test" in video) + 10 * frame


def given(flow: Flow, *, left_out: Sequence[str] = ()) -> tuple[str, ...]:
    """Writes files of labels and states of all videos but those left out."""
    root = flow.root
    videos = {name: n for name, n in videos_in(flow).items() if name not in left_out}
    labels = [(name, f"kind-{place % 2}") for place, name in enumerate(videos)]
    rows = [
        (video, frame, number(video, frame), -number(video, frame), 0.5)
        for video, numbers in videos.items()
        for frame in numbers
    ]
    write_csv(root / "labels.csv", "video,label", labels)
    write_csv(root / "states.csv", "video,frame,action.0,action.1,grip", rows)
    return "--labels", str(root / "labels.csv"), "--states", str(root / "states.csv")


def check_conditions(flow: Flow, store: TokenStore, unknown: Sequence[str] = ()) -> None:
    labels = dict(csv.reader((flow.root / "labels.csv").read_text("utf-8").splitlines()))
    videos = videos_in(flow)
    for split in store.splits:
        plan = store.plan(split)
        read = ConditionReader(store, split, ["label", "action", "grip"]).read(range(len(plan)))
        assert read.labels is not None
        for row, window in enumerate(plan.to_pylist()):
            video, first = window["video"], window["first_frame"]
            assert window["label"] == labels.get(video)
            if video in unknown:
                assert read.labels[row] == -1
                assert np.isnan(read.states["action"][row]).all()
                continue
            assert store.label_names[read.labels[row]] == labels[video]
            numbers = [number(video, f) for f in videos[video][first : first + 4]]
            expected = [[n, -n] for n in numbers]
            np.testing.assert_array_equal(read.states["action"][row], expected)
            np.testing.assert_array_equal(read.states["grip"][row], [[0.5]] * 4)


def test_files_go_to_the_windows_of_their_videos(flow: Flow) -> None:
    some = sorted(videos_in(flow))[-1]
    words = given(flow, left_out=[some])
    said = flow.ok("tokenize", *words)
    count = len(videos_in(flow))
    assert f"labels.csv: 2 labels of {count - 1} of {count} videos; without: {some}" in said
    assert f"states.csv: action (2), grip (1) of {count - 1} of {count} videos" in said
    root = flow.root / "tokens"
    store = TokenStore(root)
    check_conditions(flow, store, [some])
    assert store.verify() == []
    assert "nothing to do" in flow.ok("tokenize", *words)
    info = tokens("info", root).output
    for part in ("2, by windows: kind-0", "no label ", "action (2), grip (1) of each of 4 frames"):
        assert part in info
    assert "sha256" not in info


def test_a_store_without_conditions_is_the_one_that_it_was(flow: Flow) -> None:
    flow.ok("tokenize")
    record = json.loads((flow.root / "tokens/store.json").read_text("utf-8"))
    assert record["info"]["extra"] == {"seed": 0}
    columns = pq.read_schema(flow.root / "tokens/plan.parquet").names
    assert columns == ["split", "shard", "row", "video", "first_frame"]


def test_what_extract_left_beside_frames_is_taken(flow: Flow) -> None:
    videos = videos_in(flow)
    rows = [(video, frame) for video, numbers in videos.items() for frame in numbers]
    columns = zip(*rows, strict=True)
    states = pa.table(dict(zip(("video", "frame"), columns, strict=True)))
    states = states.append_column("time", pa.array([0.1] * len(rows)))
    states = states.append_column(
        "observation.state", pa.array([[number(*row), 1.0, 2.0] for row in rows])
    )
    pq.write_table(states, flow.root / "frames/states.parquet")
    named = {"video": list(videos), "source": [""] * len(videos)}
    named |= {"caption": [None] * len(videos), "label": ["fish"] * len(videos)}
    pq.write_table(pa.table(named), flow.root / "frames/videos.parquet")
    flow.ok("tokenize", "--labels", "beside", "--states", "beside")
    store = TokenStore(flow.root / "tokens")
    assert store.label_names == ["fish"]
    read = ConditionReader(store, "test", ["observation.state"]).read([1])
    window = store.plan("test").to_pylist()[1]
    first = videos[window["video"]][window["first_frame"]]
    expected = [[number(window["video"], first + f), 1, 2] for f in range(4)]
    np.testing.assert_array_equal(read.states["observation.state"][0], expected)


def test_nothing_beside_the_frames_is_said(flow: Flow) -> None:
    for option, name in (("--labels", "videos"), ("--states", "states")):
        line = flow.refused("tokenize", option, "beside")
        assert f"frames has no {name}.parquet" in line
    assert "no video lies in a folder that could be its label" in flow.refused(
        "tokenize", "--labels", "folders"
    )
    assert not (flow.root / "tokens").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_the_folder_of_a_video_is_its_label(flow: Flow, whole: bool) -> None:
    """Whether frames are named after their folder or not."""
    for place, name in enumerate(videos_in(flow)):
        split, video = name.split("/")
        old = flow.root / "frames" / split / video
        new = flow.root / "sorted" / split / f"class-{place % 2}" / video
        shutil.copytree(old, new)
        for file in sorted(new.iterdir()):
            number = file.stem.rpartition("_")[2]
            file.rename(new / (f"{video}_{number}.png" if whole else f"frame_{number}.png"))
    words = flow.arguments("tokenize", "--labels", "folders")
    words[2] = str(flow.root / "sorted")
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    store = TokenStore(flow.root / "tokens")
    assert store.label_names == ["class-0", "class-1"]
    for window in store.plan().to_pylist():
        assert f"/{window['label']}/" in window["video"]


def test_files_of_something_else_are_one_clear_line(flow: Flow) -> None:
    path = write_csv(flow.root / "bad.csv", "video,label", [("nobody", "x")])
    assert "bad.csv names none of the videos" in flow.refused("tokenize", "--labels", str(path))
    rows = [(next(iter(videos_in(flow))), 0, 1)]
    path = write_csv(flow.root / "bad.csv", "video,frame,a b", rows)
    line = flow.refused("tokenize", "--states", str(path))
    assert "bad.csv: states {'a b': 1} of 4 frames" in line
    assert not (flow.root / "tokens").exists()


@pytest.mark.slow
def test_other_conditions_need_update_and_take_all_tokens_over(flow: Flow) -> None:
    flow.ok("tokenize")
    plain = TokenStore(flow.root / "tokens")
    before = {split: plain.read(split) for split in plain.splits}
    words = given(flow)
    count = len(videos_in(flow))
    line = flow.refused("tokenize", *words)
    assert (
        f"other labels, captions or states: the labels of {count} of the videos differ; the states"
        in line
    )
    assert "Give --update" in line
    said = flow.ok("tokenize", *words, "--update")
    assert f"took over {sum(map(len, before.values())):,}, encoded 0 now" in said
    store = TokenStore(flow.root / "tokens")
    check_conditions(flow, store)
    assert store.verify() == []
    for split, ids in before.items():
        np.testing.assert_array_equal(store.read(split), ids)
    flow.ok("tokenize", *words, out="fresh")
    assert content(flow.root / "tokens") == content(flow.root / "fresh")
    assert "the states differ" in flow.refused("tokenize", *words[:2])
    flow.ok("tokenize", "--update")
    assert content(flow.root / "tokens").keys() == content(Path(plain.root)).keys()
    assert TokenStore(flow.root / "tokens").fingerprint == plain.fingerprint
    assert not (flow.root / "tokens/states").exists() or not any(
        (flow.root / "tokens/states").iterdir()
    )


def test_new_videos_come_with_their_conditions(flow: Flow) -> None:
    gone = sorted(videos_in(flow))[0]
    shutil.move(flow.root / "frames" / gone, flow.root / "aside")
    for split in ("train", "test"):
        (flow.root / f"frames/{split}.txt").unlink()
    flow.ok("tokenize", *given(flow))
    shutil.move(flow.root / "aside", flow.root / "frames" / gone)
    words = given(flow)
    assert "1 video is new" in flow.refused("tokenize", *words)
    said = flow.ok("tokenize", *words, "--update")
    assert "took over" in said
    store = TokenStore(flow.root / "tokens")
    check_conditions(flow, store)
    assert store.verify() == []


def test_damaged_states_are_noticed_and_repaired(flow: Flow) -> None:
    words = given(flow)
    flow.ok("tokenize", *words)
    root = flow.root / "tokens"
    whole = content(root)
    path = root / "states/test-00000.parquet"
    repair = ("repair", root, "--frames", flow.root / "frames")
    repair = (*repair, "--tokenizer", flow.root / "tokenizer.safetensors", "--device", "cpu")
    for damage in (path.read_bytes()[:-20], b"", None):
        path.unlink() if damage is None else path.write_bytes(damage)
        result = tokens("verify", root)
        assert result.exit_code == 1 and str(path) in result.output
        result = tokens(*repair)
        assert result.exit_code == 1
        assert "give --states as `mebt tokenize` was given them" in result.output
        result = tokens(*repair, *words[2:])
        assert result.exit_code == 0, result.output
        assert content(root) == whole
    (root / PLAN).write_bytes(b"")
    assert "plan.parquet is damaged; give the --labels" in tokens(*repair).output
    assert tokens(*repair, *words[:2]).exit_code == 0
    assert content(root) == whole
    (root / "manifest/test-00000.parquet").unlink()
    assert tokens(*repair).exit_code == 0
    assert content(root) == whole


def test_repair_takes_no_other_conditions(flow: Flow) -> None:
    flow.ok("tokenize", *given(flow))
    root = flow.root / "tokens"
    repair = ("repair", root, "--frames", flow.root / "frames")
    repair = (*repair, "--tokenizer", flow.root / "tokenizer.safetensors", "--device", "cpu")
    words = given(flow, left_out=sorted(videos_in(flow))[:1])
    assert "these are not the --labels" in tokens(*repair, *words[:2]).output
    assert "these are not the --states" in tokens(*repair, *words[2:]).output


def test_states_of_another_store_are_noticed(flow: Flow) -> None:
    words = given(flow)
    flow.ok("tokenize", *words)
    path = flow.root / "states.csv"
    path.write_text(path.read_text("utf-8").replace("0.5", "0.25"), "utf-8")
    flow.ok("tokenize", *words, out="other")
    for file in (flow.root / "other/states").iterdir():
        shutil.copy(file, flow.root / "tokens/states" / file.name)
    assert "states holds numbers of another store" in tokens("verify", flow.root / "tokens").output


def test_a_store_with_conditions_comes_back_from_tars(flow: Flow) -> None:
    flow.ok("tokenize", *given(flow))
    root = flow.root / "tokens"
    words = ("export", root, "--format", "webdataset", "--out", flow.root / "tars")
    assert tokens(*words).exit_code == 0
    assert tokens("import", flow.root / "tars", "--out", flow.root / "back").exit_code == 0
    assert content(flow.root / "back") == content(root)
    for form in ("npy", "1x"):
        out = flow.root / f"out-{form}{'.npy' * (form == 'npy')}"
        words = ("export", root, "--split", "test", "--format", form, "--out", out)
        said = tokens(*words).output
        assert "left out the labels" in said and "left out the states" in said


def objects(bucket: Bucket) -> dict[str, bytes]:
    return {name: bucket.read(name) for name in bucket.below()}


@pytest.mark.slow
def test_a_store_in_a_bucket_is_the_same_and_is_updated(flow: Flow, bucket: Bucket) -> None:
    words, url = given(flow), str(bucket.root)
    flow.ok("tokenize", out="plain")
    flow.ok("tokenize", *words)
    flow.ok("tokenize", out=url)
    flow.ok("tokenize", *words, "--update", out=url)
    assert objects(bucket) == content(flow.root / "tokens")
    flow.ok("tokenize", "--update", out=url)
    assert objects(bucket) == content(flow.root / "plain")


def test_labels_lie_beside_frames_in_a_bucket(flow: Flow, bucket: Bucket) -> None:
    flow.ok("extract", "--format", "webdataset", out="tars")
    for name, data in content(flow.root / "tars").items():
        bucket.write(name, data)
    words = ("--frames", str(bucket.root), "--labels", "beside")
    assert "has no videos.parquet" in flow.refused("tokenize", *words)
    video = sorted(videos_in(flow))[-1]
    bucket.write("videos.parquet", to_parquet(pa.table({"video": [video], "label": ["fish"]})))
    assert f"1 label of 1 of {len(videos_in(flow))} videos" in flow.ok("tokenize", *words)
    plan = TokenStore(flow.root / "tokens").plan()
    assert {row["video"] for row in plan.to_pylist() if row["label"]} == {video}
