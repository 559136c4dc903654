"""1X's layouts: windows inside segments, states beside them, claims that do not fit refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.exchange.detect import open_ids
from pipeline.exchange.ids import ImportConfig
from pipeline.exchange.into_store import import_ids
from pipeline.store.reader import TokenStore
from tests.helpers.token_files import draw_ids, numbered, write_v1, write_v2


def import_one(place: Path, out: Path, **values: object) -> tuple[TokenStore, list[str]]:
    config = ImportConfig(**values)
    made = import_ids({"train": open_ids(place, config)}, out, config)
    return TokenStore(out), list(made.said)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def segments() -> list[np.ndarray]:
    return [draw_ids(length, 3, 3, seed=length) for length in (9, 2, 14)]


def test_no_window_of_v1_crosses_a_segment(tmp_path: Path) -> None:
    write_v1(tmp_path / "v1", segments())
    store, said = import_one(tmp_path / "v1", tmp_path / "s", frames=4, hop=3)
    wanted = [(0, 0), (0, 3), (2, 0), (2, 3), (2, 6), (2, 9)]
    expected = [segments()[segment][first : first + 4] for segment, first in wanted]
    np.testing.assert_array_equal(store.read("train"), expected)
    assert said == [
        "left out pieces shorter than a window of 4 latent frames: 1, first segment-8@9 of 2",
        "left out latent frames after the last windows of videos: 3",
    ]
    names = store.plan()["video"].to_pylist()
    assert names == ["segment-7@0"] * 2 + ["segment-9@11"] * 4
    assert store.plan()["first_frame"].to_pylist() == [0, 3, 0, 3, 6, 9]
    info = store.info
    assert (info.codebook_size, info.frames, info.stride, info.fps) == (24, 4, 1, 30.0)
    assert not info.causal
    digest = hashlib.sha256(np.concatenate(segments()).astype("<i8").tobytes())
    for width in (21, 1):
        digest.update(numbered(25, width).tobytes())
    assert info.source == digest.hexdigest()


def test_v1_at_a_stride_has_the_rate_and_the_states_of_its_frames(tmp_path: Path) -> None:
    write_v1(tmp_path / "v1", segments())
    store, _ = import_one(tmp_path / "v1", tmp_path / "s", frames=3, stride=4)
    np.testing.assert_array_equal(store.read("train"), [segments()[0][::4], segments()[2][:9:4]])
    assert store.info.fps == 7.5
    table = store.states("train", 0)
    assert table.column_names == ["split", "row", "frame", "joint_pos", "neck_desired"]
    assert table["row"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert table["frame"].to_pylist() == [0, 1, 2, 0, 1, 2]
    rows = numbered(25, 21)[[0, 4, 8, 11, 15, 19]]
    np.testing.assert_array_equal(np.array(table["joint_pos"].to_pylist(), np.float32), rows)
    assert store.verify() == []


@pytest.mark.parametrize("flat", [True, False])
def test_v2_is_clips_of_17_frames_of_one_segment(tmp_path: Path, flat: bool) -> None:
    # Clips of shard 0: 0-16 17-33 | 34-50 51-67 of which 51-67 crosses; 68-84; 85-91 is not full.
    shards = write_v2(tmp_path / "v2", [[34, 20, 38], [17]], flat=flat)
    store, said = import_one(tmp_path / "v2", tmp_path / "s")
    wanted = [shards[0][0], shards[0][1], shards[0][2], shards[0][4], shards[1][0]]
    np.testing.assert_array_equal(store.read("train"), wanted)
    assert said == [
        "left out clips of several segments: 1",
        "left out clips that are not full: 1",
    ]
    info = store.info
    assert (info.codebook_size, info.grid, info.frames, info.fps) == (64_000, (3, 32, 32), 17, 30)
    assert info.causal
    table = store.states("train", 0)
    frames = [*range(51), *range(68, 85), *range(17)]
    np.testing.assert_array_equal(np.array(table["states"].to_pylist(), np.float32)[:, 0], frames)
    assert store.verify() == []


def test_v2_leaves_out_shards_without_a_full_clip(tmp_path: Path) -> None:
    shards = write_v2(tmp_path / "v2", [[51], [10]])
    store, said = import_one(tmp_path / "v2", tmp_path / "s")
    np.testing.assert_array_equal(store.read("train"), shards[0])
    assert said == ["left out clips that are not full: 1"]
    write_v2(tmp_path / "short", [[10], [16]])
    with pytest.raises(PipelineError, match="holds no clip of 17 frames of one segment"):
        import_one(tmp_path / "short", tmp_path / "none")


def test_v2_windows_of_two_clips_stay_in_a_segment(tmp_path: Path) -> None:
    shards = write_v2(tmp_path / "v2", [[51, 34]])
    store, _ = import_one(tmp_path / "v2", tmp_path / "s", frames=6, hop=3)
    pairs = [(0, 1), (1, 2), (3, 4)]
    expected = [np.concatenate([shards[0][a], shards[0][b]]) for a, b in pairs]
    np.testing.assert_array_equal(store.read("train"), expected)
    assert store.info.frames is None  # Two clips are no run of 1 + 8k frames.
    assert not store.info.causal
    assert len(store.states("train", 0)) == 3 * 34
    for values in ({"frames": 4}, {"hop": 2}, {"stride": 2}):
        with pytest.raises(PipelineError, match="in pieces of 3 latent frames, which stay whole"):
            import_one(tmp_path / "v2", tmp_path / "none", **values)


def cut(name: str, count: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size - count)

    return change


def says(name: str = "metadata.json", **values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **values)


def text(data: str, name: str = "metadata.json") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(data)


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def infinite(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        numbers = np.fromfile(folder / name, "<f4")
        numbers[-1] = -np.inf
        numbers.tofile(folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (infinite("actions/joint_pos.bin"), "joint_pos.bin is infinite in row 24, counted from 0"),
        (cut("video.bin", 1), "video.bin holds 899 bytes, but "),
        (cut("segment_ids.bin", 4), "segment_ids.bin holds 96 bytes"),
        (cut("actions/joint_pos.bin", 1), "joint_pos.bin holds 2,099 bytes"),
        (says(num_images=24), "video.bin holds 900 bytes"),
        (says(num_images=1 << 30), "video.bin holds 900 bytes"),
        (says(h=9), "video.bin holds 900 bytes"),
        (says(token_dtype="uint16"), "video.bin holds 900 bytes"),
        (says(token_dtype="float32"), "token_dtype is 'float32', which is no integer"),
        (says(token_dtype={"a": 1}), "which is no integer"),
        (says(num_images=True), "num_images must be a count, but is True"),
        (says(num_images="25"), "num_images must be a count"),
        (says(num_images=-25), "num_images must be a count"),
        (says(vocab_size=9), "but ids must be 0 … 8"),
        (says(hz="fast"), "hz must be frames a second"),
        (says(hz=10**400), "hz must be frames a second"),
        (text('{"num_images": NaN, "s": 3}'), "num_images must be a count, but is nan"),
        (text('{"num_images": 25}'), "s must be a count, but is None"),
        (text("[" * 100_000), "is not the JSON of a layout of 1X"),
        (text("[]"), "found a list"),
        (text('{"num_images": 1' + "0" * 5000 + "}"), "metadata.json"),
        (text(" " * (2 << 20)), "is too long for what it is to say"),
        (link("video.bin", "/etc/hostname"), "is a link that leads out of"),
        (link("segment_ids.bin", "/etc/hostname"), "is a link that leads out of"),
        (link("metadata.json", "/etc/hostname"), "is a link that leads out of"),
        (link("actions/row.bin", "/etc/hostname"), "is a link that leads out of"),
        (lambda folder: (folder / "actions/a.pt").touch(), "a.pt is no .bin"),
        (
            lambda folder: (folder / "actions/neck_desired.bin").rename(folder / "actions/row.bin"),
            "states {'joint_pos': 21, 'row': 1}",
        ),
        (lambda folder: (folder / "video.bin").unlink(), "is of no layout of 1X"),
    ],
)
def test_v1_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(write_v1(tmp_path / "v1", segments()))
    with pytest.raises(PipelineError) as error:
        import_one(tmp_path / "v1", tmp_path / "s", frames=4)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("video_1.bin", 4), "video_1.bin holds 24,572 bytes"),
        (cut("states_1.bin", 40), "states_1.bin holds 2,360 bytes"),
        (lambda folder: numbered(24, 9).tofile(folder / "states_1.bin"), "differ in numbers a fr"),
        (lambda folder: (folder / "states_1.bin").unlink(), "states_1.bin is missing"),
        (lambda folder: (folder / "segment_idx_0.bin").unlink(), "segment_idx_0.bin is missing"),
        (lambda folder: (folder / "metadata_1.json").unlink(), "metadata.json claims 2 shards"),
        (says(num_shards=1), "video_1.bin is there, but"),
        (says(num_shards=1 << 30), "metadata_2.json is missing"),
        (says(num_images=999), "claims num_images 999, but its shards hold 51"),
        (says("metadata_0.json", shard_num_frames=0), "shard_num_frames must be a count"),
        (says("metadata_0.json", shard_num_frames=400), "video_0.bin holds 24,576 bytes"),
        (link("video_0.bin", "/etc/hostname"), "is a link that leads out of"),
    ],
)
def test_v2_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    write_v2(tmp_path / "v2", [[27], [24]])
    change(tmp_path / "v2")
    with pytest.raises(PipelineError) as error:
        import_one(tmp_path / "v2", tmp_path / "s")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stride": 2}, "which stay whole: --stride must be 1, not 2."),
        ({"frames": 4}, "which stay whole: --frames must be a multiple of 3, not 4."),
        ({"hop": 2}, "which stay whole: --hop must be a multiple of 3, not 2."),
    ],
)
def test_what_would_part_clips_is_named(tmp_path: Path, values: dict, message: str) -> None:
    write_v2(tmp_path / "v2", [[27], [24]])
    with pytest.raises(PipelineError, match=message):
        import_one(tmp_path / "v2", tmp_path / "s", **values)


def test_a_snapshot_in_the_cache_of_the_hub_is_to_be_downloaded_elsewhere(tmp_path: Path) -> None:
    folder = write_v1(tmp_path / "datasets--a--b/snapshots/1f", segments())
    (blobs := tmp_path / "datasets--a--b/blobs").mkdir()
    for number, path in enumerate(sorted(folder.glob("*.*"))):
        path.rename(blobs / f"{number}ab")
        path.symlink_to(f"../../blobs/{number}ab")
    with pytest.raises(PipelineError, match="download it into a folder of its own") as error:
        import_one(folder, tmp_path / "s", frames=4)
    said = "metadata.json is a link that leads out of"
    assert said in str(error.value) and "--local-dir FOLDER" in str(error.value)


def test_what_a_layout_lacks_is_said(tmp_path: Path) -> None:
    folder = write_v1(tmp_path / "v1", segments(), states=False)
    (folder / "segment_ids.bin").unlink()
    (folder / "actions").mkdir()
    for name in ("magvit2.ckpt", ".gitattributes", "actions/.DS_Store"):
        (folder / name).touch()
    store, said = import_one(folder, tmp_path / "s", frames=5)
    assert said == [
        "left out other files: 1, first magvit2.ckpt",
        "no segment_ids.bin: all frames are taken for one segment",
    ]
    assert store.num_windows("train") == 5
    assert store.states("train", 0) is None
    with pytest.raises(PipelineError, match="says vocab_size 24, but --codebook-size is 25"):
        import_one(folder, tmp_path / "none", frames=5, codebook_size=25)
    with pytest.raises(PipelineError, match="give no --levels"):
        import_one(folder, tmp_path / "none", levels=(4, 6))
    with pytest.raises(PipelineError, match="no train window fits: the longest of 1 videos has 25"):
        import_one(folder, tmp_path / "none", frames=26)
