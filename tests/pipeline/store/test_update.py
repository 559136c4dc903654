"""Stores whose frames changed: what is the same is taken over, and the end is that of a fresh one.

No frames are needed for it: tokens stand for the bytes of the frames of their window.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import TokenStoreError
from pipeline.frame_list import FRAMES, SOURCE_SCHEMA, source_of
from pipeline.frames.scan import Video
from pipeline.storage.places import Folder, Inside
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.states import STATES_HASH, States, hash_states
from pipeline.store.switch import switch
from pipeline.store.update import Known, prepare_store
from pipeline.store.writer import StoreWriter
from pipeline.windows.plan import TokenizeConfig, plan_windows
from tests.helpers.small import content

WINDOW = TokenizeConfig(frames=3, stride=2, hop=2, size=16, shard_windows=4, chunk_windows=2)

Frames = Mapping[str, list[int]]
"""Bytes of each frame of each video; names begin with their split."""

BEFORE: Frames = {
    **{f"train{n}": [10 * n + m for m in range(11)] for n in range(6)},
    **{f"test{n}": [100 + 10 * n + m for m in range(9)] for n in range(2)},
}


def changed(**videos: list[int] | None) -> Frames:
    merged = {**BEFORE, **videos}
    return {name: sizes for name, sizes in merged.items() if sizes is not None}


ONE_FRAME = changed(train3=[30, 31, 32, 33, 934, *range(35, 41)])
OTHER_VIDEOS = changed(train2=None, train9=[*range(200, 216)], train4=[*range(40, 45)], test1=None)


STATES = States(3, {"turn": 1})


class KilledError(BaseException):
    """Stands for kill -9: nobody catches it."""


def lists(frames: Frames) -> tuple[pa.Table, pa.Table, StoreInfo]:
    """Returns what a store of these frames is made with: plan, list of frames, info."""
    split_of = {name: name.rstrip("0123456789") for name in frames}
    videos = [
        Video(name, split_of[name], tuple(f"{n}.png" for n in range(len(sizes))))
        for name, sizes in sorted(frames.items())
    ]
    rows = [
        (split_of[name], name, f"{n}.png", size, None)
        for name, sizes in sorted(frames.items())
        for n, size in enumerate(sizes)
    ]
    named = [dict(zip(SOURCE_SCHEMA.names, row, strict=True)) for row in rows]
    source = pa.Table.from_pylist(named, schema=SOURCE_SCHEMA)
    plan = plan_windows(videos, WINDOW)
    counts = {split: plan.num_windows(split) for split in ("train", "test")}
    info = StoreInfo(
        tokenizer="t", codebook_size=2000, grid=(3, 1, 1), source=source_of(source), counts=counts,
        shard_windows=4, chunk_windows=2, frames=3, stride=2, hop=2, size=16,
    )  # fmt: skip
    return plan.table, source, info


def tokens_of(frames: Frames, row: Mapping[str, object]) -> list[int]:
    first = row["first_frame"]
    return frames[row["video"]][first : first + 5 : 2]


def states_of(
    frames: Frames, info: StoreInfo, plan: pa.Table, turn: float
) -> tuple[StoreInfo, dict[tuple[str, int], pa.Table]]:
    """Gives each frame a number, its own `turn` times; returns what the store says, and tables."""
    values = {}
    for split, shard in info.shards():
        start, stop = info.shard_rows(split, shard)
        rows = plan.filter(np.asarray(plan["split"]) == split).slice(start, stop - start)
        numbers = [tokens_of(frames, row) for row in rows.to_pylist()]
        values[split, shard] = {"turn": turn * np.array(numbers, np.float32)[..., None]}
    tables = {shard: STATES.table(info, *shard, numbers) for shard, numbers in values.items()}
    extra = {**STATES.recorded(), STATES_HASH: hash_states(values.values())}
    return replace(info, extra=extra), tables


def make(
    root: Path, frames: Frames, *, most: int = 1000, update: bool = False, turn: float | None = None
) -> tuple[int, int]:
    """Does what `tokenize` does, of at most so many shards; returns windows encoded and taken."""
    plan, source, info = lists(frames)
    states: dict[tuple[str, int], pa.Table] = {}
    if turn is not None:
        info, states = states_of(frames, info, plan, turn)
    files = Folder(root)
    work = prepare_store(files, info, plan, source=source, update=update)
    below = Inside(files, work.folder) if work.folder else files
    writer = StoreWriter(below)
    others = [
        (TokenStore(Inside(files, name) if name else files, allow_partial=True), whole)
        for name, whole in work.taken
    ]
    known = Known(writer.store, others) if others else None
    encoded, taken = 0, work.kept
    for split, shard in work.missing[:most]:
        start, stop = info.shard_rows(split, shard)
        rows = writer.store.plan(split).slice(start, stop - start).to_pylist()
        tokens = np.array([tokens_of(frames, row) for row in rows]).reshape(-1, 3, 1, 1)
        has = known.has(split, start, stop) if known else np.zeros(stop - start, bool)
        if known:
            np.testing.assert_array_equal(known.read(split, start, stop)[has], tokens[has])
        encoded, taken = encoded + int((~has).sum()), taken + int(has.sum())
        writer.write_shard(split, shard, tokens, states.get((split, shard)))
    if work.folder and not writer.store.missing():
        switch(files, work.folder)
    return encoded, taken


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores that were made undisturbed."""
    folder = tmp_path_factory.mktemp("fresh")
    made = {"before": BEFORE, "one": ONE_FRAME, "other": OTHER_VIDEOS}
    for name, frames in made.items():
        make(folder / name, frames)
    return {name: folder / name for name in made}


def test_an_unfinished_store_goes_on_and_redoes_the_shards_of_the_changed_frame(
    tmp_path: Path, fresh: dict[str, Path]
) -> None:
    make(tmp_path, BEFORE, most=5)
    before = content(tmp_path)
    encoded, kept = make(tmp_path, ONE_FRAME)
    # Of 6 videos of 4 windows (frames 0, 2, 4 and so on) each is a shard; frame 4 is in one.
    assert (encoded, kept) == (4 + 4 + 6, 16)
    assert content(tmp_path) == content(fresh["one"])
    shards = {name for name in before if name.endswith("0/0/0")}
    assert sum(before[name] == content(tmp_path)[name] for name in shards) == len(shards) - 1


def test_a_finished_store_is_left_alone_until_told_to_update(
    tmp_path: Path, fresh: dict[str, Path]
) -> None:
    root = shutil.copytree(fresh["before"], tmp_path / "s")
    with pytest.raises(TokenStoreError, match=r"1 frame differs \(4\.png of train3\).*--update"):
        make(root, ONE_FRAME)
    what = r"\(train9 in train\); 2 videos are gone \(test1 in test, train2 in train\)"
    with pytest.raises(TokenStoreError, match=rf"frames differ .*; 1 video is new {what}"):
        make(root, OTHER_VIDEOS)
    assert content(root) == content(fresh["before"])
    assert make(root, ONE_FRAME, update=True) == (4, 26)
    assert content(root) == content(fresh["one"])


def test_other_videos_take_over_every_window_of_the_same_frames(
    tmp_path: Path, fresh: dict[str, Path]
) -> None:
    root = shutil.copytree(fresh["before"], tmp_path / "s")
    # New: the 6 of train9. Of train4 is left the window of frames 0, 2, 4; test1 and train2 go.
    assert make(root, OTHER_VIDEOS, update=True) == (6, 4 * 4 + 1 + 3)
    assert content(root) == content(fresh["other"])
    assert make(root, OTHER_VIDEOS, update=True) == (0, 0)


def test_what_grew_for_frames_that_changed_once_more_is_not_lost(
    tmp_path: Path, fresh: dict[str, Path]
) -> None:
    root = shutil.copytree(fresh["before"], tmp_path / "s")
    further = {**OTHER_VIDEOS, "train8": [*range(300, 309)]}
    first, _ = make(root, further, most=5, update=True)
    assert content(root).keys() > content(fresh["before"]).keys()
    assert TokenStore(root).fingerprint == TokenStore(fresh["before"]).fingerprint
    second, _ = make(root, OTHER_VIDEOS, update=True)
    assert first + second < 3 + 6 + 6  # Some of the new windows were taken from what grew.
    assert content(root) == content(fresh["other"])


def test_a_damaged_shard_is_encoded_not_taken_over(tmp_path: Path, fresh: dict[str, Path]) -> None:
    root = shutil.copytree(fresh["before"], tmp_path / "s")
    path = root / "train.zarr" / "c" / "1" / "0" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    encoded, _ = make(root, OTHER_VIDEOS, update=True)
    assert encoded > 6
    assert content(root) == content(fresh["other"])


def stops(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    frames: Frames,
    *,
    step: int,
    turn: float | None = None,
) -> Iterator[int]:
    """Makes the store again and again, killed some changes later each time."""
    changes = {name: getattr(Folder, name) for name in ("write", "move", "remove")}
    count = 0

    def kill_at(number: int) -> None:
        def counted(name: str) -> None:
            def change(self: Folder, *args: object) -> None:
                nonlocal count
                count += 1
                if count == number:
                    raise KilledError
                changes[name](self, *args)

            monkeypatch.setattr(Folder, name, change)

        for name in changes:
            counted(name)

    for number in range(1, 1000, step):
        count = 0
        kill_at(number)
        try:
            make(root, frames, update=True, turn=turn)
        except KilledError:
            monkeypatch.undo()
            yield number
        else:
            monkeypatch.undo()
            return


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("one", 7),
        ("other", 29),
        pytest.param("other", 1, marks=pytest.mark.slow),
        pytest.param("one", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_change_an_update_ends_the_same(
    tmp_path: Path, fresh: dict[str, Path], name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = {"one": ONE_FRAME, "other": OTHER_VIDEOS}[name]
    tokens = {key: TokenStore(fresh[key]).read("train").tolist() for key in ("before", name)}
    root = shutil.copytree(fresh["before"], tmp_path / "killed")
    ends = stops(monkeypatch, root, frames, step=step)
    for number in ends:
        try:  # What is read is the old store or the new one.
            assert TokenStore(root).read("train").tolist() in tokens.values()
        except TokenStoreError as error:
            assert "run the command that made" in str(error)
        once = shutil.copytree(root, tmp_path / f"once-{number}")
        make(once, frames, update=True)
        assert content(once) == content(fresh[name]), number
        shutil.rmtree(once)
        shutil.rmtree(root)
        shutil.copytree(fresh["before"], root)
    assert number > 12
    assert content(root) == content(fresh[name])


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("before", "after"), [(None, 2.0), (1.0, 2.0), (1.0, None)])
def test_killed_at_any_change_states_are_of_one_store_or_the_other(
    before: float | None,
    after: float | None,
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "fresh", BEFORE, turn=after)
    root = tmp_path / "killed"
    make(root, BEFORE, turn=before)
    killed = 0
    for _ in stops(monkeypatch, root, BEFORE, step=step, turn=after):
        killed += 1
        try:
            store = TokenStore(root)
        except TokenStoreError:
            continue
        assert store.verify() == []
    assert killed > 1
    assert content(root) == content(tmp_path / "fresh")


def test_states_of_changed_frames_are_kept_where_frames_are_the_same(tmp_path: Path) -> None:
    make(tmp_path / "fresh", ONE_FRAME, turn=0)
    make(tmp_path / "s", BEFORE, turn=0)
    assert make(tmp_path / "s", ONE_FRAME, update=True, turn=0) == (4, 26)
    assert content(tmp_path / "s") == content(tmp_path / "fresh")


def test_settings_that_differ_are_named_not_updated(tmp_path: Path) -> None:
    make(tmp_path, BEFORE)
    plan, source, info = lists(ONE_FRAME)
    other = dataclasses.replace(info, tokenizer="u")
    with pytest.raises(TokenStoreError, match="tokenizer = 't', not 'u'"):
        prepare_store(Folder(tmp_path), other, plan, source=source, update=True)


def test_an_old_store_without_a_list_says_so(tmp_path: Path) -> None:
    plan, source, info = lists(BEFORE)
    prepare_store(Folder(tmp_path), info, plan, source=None)
    writer = StoreWriter(tmp_path)
    for split, shard in info.shards():
        start, stop = info.shard_rows(split, shard)
        writer.write_shard(split, shard, np.zeros((stop - start, 3, 1, 1), np.int64))
    with pytest.raises(TokenStoreError, match="does not list them: an earlier version"):
        make(tmp_path, ONE_FRAME, update=True)
    prepare_store(Folder(tmp_path), info, plan, source=source)
    assert TokenStore(tmp_path).made_from.equals(source)  # It has one now.
    assert FRAMES in content(tmp_path)
