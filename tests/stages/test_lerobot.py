"""`mebt extract` on a LeRobot data set, version 3, as its own writer lays it out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.errors import FrameError
from pipeline.frames.scan import scan_frames
from pipeline.storage.files import read_json
from pipeline.video.templates import DATA, VIDEO
from stages.__main__ import cli
from tests.helpers.film import number_of, picture, write_film

FPS = 10
LENGTHS = (6, 9, 8)
"""Frames of the episodes: the first two lie in one file, the third in another."""
TOP, WRIST = "observation.images.top", "observation.images.wrist"
DEPTH, OLD_DEPTH = "observation.images.depth", "observation.images.old_depth"
PATHS = {"video_path": VIDEO, "data_path": DATA}
NO_PICTURES = {DEPTH, OLD_DEPTH}
PLACES = ((0, 0), (0, 0), (0, 1))


def write_set(root: Path, **changes: Any) -> Path:
    """Writes a set; frame `n` of episode `e` shows 40 e + n + 20, at the wrist 10 less."""
    features = {
        TOP: {"dtype": "video", "shape": [64, 64, 3], "names": None, "info": {}},
        WRIST: {"dtype": "video", "shape": [64, 64, 3], "names": None},
        DEPTH: {"dtype": "video", "info": {"is_depth_map": True}},
        OLD_DEPTH: {"dtype": "video", "video_info": {"video.is_depth_map": True}},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.state": {"dtype": "float32", "shape": [1], "names": ["z"]},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features, **changes}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    episodes, rows = [], {}
    films: dict[tuple[str, int], list[int]] = {}
    for number, (length, (chunk, file)) in enumerate(zip(LENGTHS, PLACES, strict=True)):
        episode: dict[str, Any] = {"episode_index": number, "length": length, "tasks": ["lift it"]}
        episode |= {"data/chunk_index": chunk, "data/file_index": file}
        for camera, less in ((TOP, 0), (WRIST, 10)):
            film = films.setdefault((camera, file), [])
            start = len(film) / FPS
            film += [40 * number + n + 20 - less for n in range(length)]
            episode |= {
                f"videos/{camera}/chunk_index": chunk,
                f"videos/{camera}/file_index": file,
                f"videos/{camera}/from_timestamp": start,
                f"videos/{camera}/to_timestamp": len(film) / FPS,
            }
        episodes.append(episode)
        for n in range(length):
            rows.setdefault(file, []).append(
                {
                    **{"episode_index": number, "frame_index": n, "timestamp": n / FPS},
                    **{"action": [float(number), float(n)], "observation.state": [n / 2]},
                }
            )
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    video, data = (str(changes.get(key, usual)) for key, usual in PATHS.items())
    for file, table in rows.items():
        write_table(root / data.format(chunk_index=0, file_index=file), table)
    for (camera, file), numbers in films.items():
        path = root / video.format(video_key=camera, chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = (picture(number, 64, 64) for number in numbers)
        write_film(path, pictures, "libx264", rate=FPS, options={"g": "4", "crf": "5"})
    return root


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def change_table(path: Path, **columns: Any) -> None:
    rows = pq.read_table(path).to_pylist()
    for name, change in columns.items():
        for number, row in enumerate(rows):
            row[name] = change(number, row[name])
    write_table(path, rows)


def extract(root: Path, out: Path, *more: str) -> Result:
    words = ["extract", "--videos", str(root), "--out", str(out), "--set", "extract.size=64"]
    return CliRunner().invoke(cli, [*words, "--set", "extract.test_share=0.25", *more])


def numbers_of(frames: Path) -> dict[str, list[int]]:
    found = {}
    for video in scan_frames(frames).videos:
        pictures = (np.asarray(Image.open(path).convert("RGB")) for path in video.frames)
        found[video.name] = [number_of(pixels) for pixels in pictures]
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Open images.
def test_every_episode_of_every_camera_is_a_video(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 0, result.output
    found = numbers_of(tmp_path / "frames")
    for episode, length in enumerate(LENGTHS):
        for camera, first in (("top", 40 * episode + 20), ("wrist", 40 * episode + 10)):
            name = f"episode-{episode:06d}-{camera}"
            assert found[f"train/{name}"] + found[f"test/{name}"] == [*range(first, first + length)]
    assert len(found) == 12 and "10 frames a second" in result.output
    rows = pq.read_table(tmp_path / "frames/states.parquet").to_pylist()
    assert len(rows) == 2 * sum(LENGTHS)
    mine = [row for row in rows if row["video"] == "test/episode-000001-wrist"]
    assert [row["frame"] for row in mine] == [7, 8]
    assert mine[1]["time"] == 0.8
    assert (mine[1]["action"], mine[1]["observation.state"]) == ([1.0, 8.0], [4.0])
    assert reasons(tmp_path / "frames") == dict.fromkeys(
        NO_PICTURES, "a depth map, which is no picture"
    )
    texts = pq.read_table(tmp_path / "frames/videos.parquet").to_pylist()
    assert {row["caption"] for row in texts} == {"lift it"}


def test_files_lie_where_the_set_says(tmp_path: Path) -> None:
    root = write_set(tmp_path / "usual")
    assert extract(root, tmp_path / "one").exit_code == 0
    paths = {
        "video_path": "films/{chunk_index}/{video_key}.{file_index:d}{{}}.mp4",
        "data_path": "numbers/{file_index:02d}.parquet",
    }
    other = write_set(tmp_path / "other", **paths)
    assert (other / f"films/0/{WRIST}.1{{}}.mp4").is_file() and (
        other / "numbers/01.parquet"
    ).is_file()
    result = extract(other, tmp_path / "two")
    assert result.exit_code == 0, result.output
    assert numbers_of(tmp_path / "two") == numbers_of(tmp_path / "one")
    tables = (pq.read_table(tmp_path / out / "states.parquet") for out in ("one", "two"))
    assert next(tables) == next(tables)


def test_files_may_be_links_into_the_cache_of_the_hub(tmp_path: Path) -> None:
    root = write_set(tmp_path / "snapshots/1f")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(p for p in sorted(root.rglob("*")) if p.is_file()):
        path.rename(tmp_path / f"blobs/{number}ab")
        path.symlink_to(tmp_path / f"blobs/{number}ab")
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 0, result.output
    assert "6 videos in" in result.output and reasons(tmp_path / "frames").keys() == NO_PICTURES


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        (
            "video_path",
            "../{video_key}-{chunk_index}-{file_index}.mp4",
            "leads out of the data set",
        ),
        ("video_path", "/{video_key}-{chunk_index}-{file_index}.mp4", "leads out of the data set"),
        ("data_path", "a/../../{chunk_index}-{file_index}.parquet", "leads out of the data set"),
        ("data_path", "..\\{chunk_index}-{file_index}.parquet", "leads out of the data set"),
        ("video_path", "{video_key}/{episode_index}.mp4", "has a field 'episode_index'; known are"),
        ("video_path", "{video_key.__class__}.mp4", "has a field 'video_key.__class__'"),
        ("video_path", "{}.mp4", "has a field ''"),
        ("video_path", "{video_key!r}.mp4", "writes video_key otherwise"),
        ("video_path", "{video_key:>9}.mp4", "writes video_key otherwise"),
        ("data_path", "{file_index:0999999999d}.parquet", "writes file_index otherwise"),
        ("data_path", "{file_index:{file_index}}.parquet", "writes file_index otherwise"),
        ("data_path", "{file_index.parquet", "is no name with fields"),
        ("data_path", "{file_index}\0.parquet", "is no name that a file can have"),
        ("data_path", "{file_index}" + "x" * 300 + ".parquet", "is no name that a file can have"),
        ("data_path", ["data"], "data_path is no name"),
        ("data_path", "data.csv", "is no name of a .parquet"),
        ("data_path", "data.parquet", "gives two files the name"),
        ("video_path", "films/{file_index}.mp4", "gives two files the name"),
    ],
)
def test_names_of_files_that_cannot_be_are_refused(
    tmp_path: Path, key: str, path: Any, message: str
) -> None:
    root = write_set(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, key: path}))
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"info.json: {key}" in result.output and message in result.output
    assert len(result.output.splitlines()) == 1 and not (tmp_path / "frames").exists()


def test_a_folder_may_be_named_by_a_way_through_its_parent(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    result = extract(root / "meta/../../set", tmp_path / "frames")
    assert result.exit_code == 0 and "6 videos in" in result.output, result.output


def test_numbers_of_any_form_are_lists(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for path in (root / "data/chunk-000").iterdir():
        change_table(
            path,
            action=lambda _, numbers: [numbers, numbers],
            **{"observation.state": lambda _, numbers: numbers[0]},
        )
    assert extract(root, tmp_path / "frames").exit_code == 0
    rows = pq.read_table(tmp_path / "frames/states.parquet").to_pylist()
    (row,) = (r for r in rows if r["video"] == "test/episode-000001-top" and r["frame"] == 8)
    assert row["action"] == [1.0, 8.0, 1.0, 8.0] and row["observation.state"] == [4.0]


def test_numbers_that_are_none_reject_their_episodes(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(root / "data/chunk-000/file-000.parquet", action=lambda *_: "left")
    assert extract(root, tmp_path / "frames").exit_code == 0
    said = reasons(tmp_path / "frames")
    assert len(said) == 4 + len(NO_PICTURES)
    assert "holds other than numbers of each frame" in said["episode-000001-top"]


def test_infinite_and_ragged_numbers_reject_their_episodes(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    row_of = {"infinite": 1, "ragged": LENGTHS[0] + 2}

    def changed(row: int, numbers: list[float]) -> list[float]:
        if row == row_of["infinite"]:
            return [0.0, float("inf")]
        return numbers[:1] if row == row_of["ragged"] else numbers

    change_table(root / "data/chunk-000/file-000.parquet", action=changed)
    assert extract(root, tmp_path / "frames").exit_code == 0
    said = reasons(tmp_path / "frames")
    for camera in ("top", "wrist"):
        assert (
            "of episode 0, action is infinite in frame 1;" in said[f"episode-000000-{camera}"]
            and "of episode 1, action has 2 numbers in one frame, 1 in another"
            in said[f"episode-000001-{camera}"]
        )
    assert len(said) == 4 + len(NO_PICTURES)


def test_episodes_of_more_numbers_than_others_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(root / "data/chunk-000/file-001.parquet", action=lambda row, x: [*x, 0.0])
    result = extract(root, tmp_path / "frames", "--camera", "top")
    assert result.exit_code == 1
    said = "train/episode-000002-top has 3 numbers of action a frame, but train/episode-000000-top"
    assert f"Error: {said} has 2; take one of them out." in result.output
    assert not (tmp_path / "frames/states.parquet").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_numbers_may_be_unknown(tmp_path: Path, nested: bool) -> None:
    root = write_set(tmp_path / "set")

    def changed(row: int, numbers: list[float]) -> list[Any] | None:
        known = [None, [float("nan"), 1.0], [None, 2.0], numbers][min(row, 3)]
        return [known] if nested and known else known

    for file in range(2):
        change_table(root / f"data/chunk-000/file-00{file}.parquet", action=changed)
    assert extract(root, tmp_path / "frames", "--camera", "top").exit_code == 0
    assert reasons(tmp_path / "frames").keys() == NO_PICTURES
    rows = pq.read_table(tmp_path / "frames/states.parquet").to_pylist()
    found = [row["action"] for row in rows if row["video"] == "train/episode-000002-top"]
    assert found[0] is None and found[1][1:] == [1.0] and np.isnan(found[1][0])
    assert found[2:4] == [[None, 2.0], [2.0, 3.0]]


def test_few_frames_may_be_a_frame_early_or_late(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(
        root / "data/chunk-000/file-000.parquet",
        timestamp=lambda row, time: time + 0.9 / FPS if row == LENGTHS[0] - 1 else time,
    )
    assert extract(root, tmp_path / "frames").exit_code == 0
    assert reasons(tmp_path / "frames").keys() == NO_PICTURES


def test_frames_of_another_rate_than_said_are_rejected(tmp_path: Path) -> None:
    result = extract(write_set(tmp_path / "fast", fps=2 * FPS), tmp_path / "none")
    assert result.exit_code == 1 and "no clip is usable of 8 files" in result.output
    assert "times the frames of episode 0 at 10 a second, but meta/info.json" in result.output
    root = write_set(tmp_path / "set", fps=FPS * 1000 / 1001)  # Rounded.
    film = root / f"videos/{WRIST}/chunk-000/file-001.mp4"
    write_film(film, (picture(90 + n, 64, 64) for n in range(8)), "libx264", rate=2 * FPS)
    change_table(
        root / "data/chunk-000/file-000.parquet",
        timestamp=lambda row, time: time / 2 if row < LENGTHS[0] else time,
    )
    assert extract(root, tmp_path / "frames").exit_code == 0
    said = reasons(tmp_path / "frames")
    wrong = {"episode-000000-top", "episode-000000-wrist", "episode-000002-wrist"}
    assert said.keys() == {*NO_PICTURES, *wrong}
    assert "times the frames of episode 0 at 20 a second" in said["episode-000000-top"]
    assert "from second 0 to 0.8 at 20 a second, but" in said["episode-000002-wrist"]


@pytest.mark.parametrize("time", [float("nan"), None, 0.0, float("inf")])
def test_frames_of_no_time_are_rejected(tmp_path: Path, time: float | None) -> None:
    root = write_set(tmp_path / "set")
    change_table(
        root / "data/chunk-000/file-000.parquet",
        timestamp=lambda row, before: time if row == 3 else before,
    )
    assert extract(root, tmp_path / "frames", "--camera", "top").exit_code == 0
    said = reasons(tmp_path / "frames")
    assert said.keys() == {*NO_PICTURES, "episode-000000-top"}
    assert "does not time the frames of episode 0 in order." in said["episode-000000-top"]


def test_a_rate_that_was_mended_is_read_anew(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", fps=2 * FPS)
    assert extract(root, tmp_path / "frames").exit_code == 1
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "fps": FPS}))
    assert extract(root, tmp_path / "frames", "--overwrite").exit_code == 0
    assert reasons(tmp_path / "frames").keys() == NO_PICTURES


def test_first_params_are_of_episodes(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    words = ["init", "--videos", str(root), "--out", str(tmp_path / "params.yaml")]
    said = CliRunner().invoke(cli, [*words, "--camera", "wrist"]).output
    assert f"{root}: 3 videos, 2.3 seconds in all, 10 frames a second" in said
    assert f"--videos {root} --camera wrist --out frames" in said
    (root / f"videos/{TOP}/chunk-000/file-001.mp4").unlink()
    said = CliRunner().invoke(cli, [*words, "--overwrite"]).output
    assert "5 videos" in said and "left aside, since they are no videos: 3, such as" in said
    assert CliRunner().invoke(cli, ["init", "--camera", "top"]).exit_code == 2
    change_table(root / "meta/episodes/chunk-000/file-000.parquet", length=lambda *_: 10**12)
    result = CliRunner().invoke(cli, [*words, "--overwrite"])
    assert result.exit_code == 1 and "holds no video" in result.output


def test_cameras_are_chosen_by_name(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for number, name in enumerate(("top", TOP)):
        result = extract(root, tmp_path / f"{number}", "--camera", name)
        assert result.exit_code == 0, result.output
        videos = scan_frames(tmp_path / f"{number}").videos
        assert len(videos) == 6 and all("-top" in video.name for video in videos)
    for name in ("side", "depth"):
        result = extract(root, tmp_path / "no", "--camera", name)
        assert (
            result.exit_code == 1 and f"has no camera '{name}'; it has top, wrist" in result.output
        )
    (tmp_path / "videos").mkdir()
    result = extract(tmp_path / "videos", tmp_path / "no", "--camera", "top")
    assert result.exit_code == 1 and "is no LeRobot data set" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.1"}, "is of version v2.1; only v3 is read"),
        ({"fps": 0}, "says fps 0, which cannot be"),
        ({"fps": "ten"}, "says fps ten, which cannot be"),
        ({"features": {"action": {"dtype": "float32"}}}, "names no camera with videos"),
        ({"features": {"../x": {"dtype": "video"}}}, "leads elsewhere; refused"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    result = extract(write_set(tmp_path / "set", **changes), tmp_path / "frames")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert message in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / "frames").exists()


def test_a_recording_that_was_not_finished_is_said(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "meta/episodes/chunk-000/file-000.parquet").unlink()
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1
    assert "lists no episode; a recording that LeRobot did not finish" in result.output


def reasons(frames: Path) -> dict[str, str]:
    record = read_json(frames / "extract.json", FrameError, "record")
    return {rejected["name"]: rejected["reason"] for rejected in record["rejected"]}


def test_an_episode_that_is_not_as_it_says_is_rejected(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        length=lambda number, length: length + (number == 0),
    )
    (root / f"videos/{WRIST}/chunk-000/file-001.mp4").unlink()
    change_table(
        root / "data/chunk-000/file-000.parquet",
        frame_index=lambda number, frame: 1 if number == 0 else frame,
    )
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 0, result.output
    said = reasons(tmp_path / "frames")
    wrong = {"episode-000000-top", "episode-000000-wrist", "episode-000002-wrist"}
    assert said.keys() == {*NO_PICTURES, *wrong}
    assert "has 6 rows of episode 0, which has 7" in said["episode-000000-top"]
    assert "cannot be read: No such file" in said["episode-000002-wrist"]


def test_a_length_without_end_rejects_its_episode(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        length=lambda number, length: length if number else 10**12 - 1,
    )
    change_table(
        root / "data/chunk-000/file-001.parquet", frame_index=lambda _, frame: max(frame, 1)
    )
    assert extract(root, tmp_path / "frames").exit_code == 0
    said = reasons(tmp_path / "frames")
    assert "has 6 rows of episode 0, which has 999999999999" in said["episode-000000-top"]
    assert "does not number the frames of episode 2 0, 1, 2 …" in said["episode-000002-top"]
    assert len(said) == 4 + len(NO_PICTURES)


def test_a_video_with_too_few_frames_is_rejected(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    change_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        **{f"videos/{TOP}/to_timestamp": lambda number, time: time - 0.2 * (number == 1)},
    )
    assert extract(root, tmp_path / "frames").exit_code == 0
    said = reasons(tmp_path / "frames")
    assert "holds 7 frames from second 0.6 to 1.3, but the episode has 9" in said.pop(
        "episode-000001-top"
    )
    assert said.keys() == NO_PICTURES


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"episode_index": lambda number, _: number + 1}, "lists episode 1, not 0"),
        ({"length": lambda *_: -1}, "says no place of its own"),
        ({f"videos/{TOP}/from_timestamp": lambda *_: float("nan")}, "says no place of its own"),
        ({"data/file_index": lambda *_: 1 << 50}, "says no place of its own"),
        ({"data/file_index": lambda *_: 0.5}, "data/file_index is 0.5"),
        ({"length": lambda *_: "six"}, "length is 'six'"),
    ],
)
def test_episodes_that_lie_are_refused(tmp_path: Path, columns: dict, message: str) -> None:
    root = write_set(tmp_path / "set")
    change_table(root / "meta/episodes/chunk-000/file-000.parquet", **columns)
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and message in result.output, result.output


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    whole = path.read_bytes()
    rows = pq.read_table(pa.BufferReader(whole))
    place = rows.schema.get_field_index("tasks")
    tasks = pa.array([[b"\xff"]] * len(rows)).view(pa.list_(pa.string()))
    pq.write_table(rows.set_column(place, "tasks", tasks), path)
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and "file-000.parquet is damaged" in result.output
    path.write_bytes(whole[:-9] + whole[-8:])
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and "file-000.parquet is damaged" in result.output
    path.write_bytes(whole[:500])
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and "file-000.parquet is damaged" in result.output
    assert not result.output.rstrip().endswith("..")
    rows = pq.read_table(pa.BufferReader(whole)).drop_columns(["length"])
    pq.write_table(rows, path)
    result = extract(root, tmp_path / "frames")
    assert result.exit_code == 1 and "has no column" in result.output
