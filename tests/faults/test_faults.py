"""A few trials of the harness, and that it tells broken promises from kept ones."""

import errno
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.arms import Arm, Interruption, Tally
from tests.faults.damage import flip, same
from tests.faults.harness import KINDS, attempt, put_into, report, table
from tests.faults.harness import Tally as Count
from tests.faults.kills import keep_finished, must_be_undisturbed
from tests.faults.trial import (
    DataLostError,
    Ended,
    Trial,
    UnclearError,
    WrongDataError,
)
from tests.faults.world import World
from tests.helpers.small import fork, has_ended

SHORT = (
    *("kill -9: train", "kill -9: decode", "two writers at once", "flip a file", "swap a file"),
    *("a claim of 10 GB in a small file", "tar members that lead outside"),
    *("EIO when a file is made, written, renamed", "values and headers drawn at random"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults") / "world")
    yield made
    made.must_be_untouched()


def trials(world: World, kinds: tuple[str, ...], *, each: int) -> dict[str, Count]:
    tallies = {kind: Count() for kind in kinds}
    for kind, tally in tallies.items():
        for number in range(each):
            attempt(world, kind, number, 0, tally)
    return tallies


@pytest.mark.slow
def test_some_faults_break_no_promise(world: World) -> None:
    tallies = trials(world, SHORT, each=1)
    assert not [failure for tally in tallies.values() for failure in tally.failures]
    found = report(tallies, seed=0)
    assert found["trials"] == len(SHORT)
    assert (found["data_lost"], found["wrong_data_read"], found["unclear"]) == (0, 0, 0)
    other = World.__new__(World)
    other.results = {"tokenize": {**world.results["tokenize"], "plan.parquet": b"other"}}
    with pytest.raises(WrongDataError, match=r"tokenize ended with another plan\.parquet"):
        must_be_undisturbed(
            Trial(other, world.root, random.Random(0)), "tokenize", world.root / "tokens"
        )
    other.results = world.results
    with pytest.raises(DataLostError, match=r"train ended without .*last"):
        must_be_undisturbed(Trial(other, world.root, random.Random(0)), "train", world.root / "no")


@pytest.mark.slow
def test_faults_of_every_kind_break_no_promise(world: World) -> None:
    tallies = trials(world, tuple(KINDS), each=3)
    assert not [failure for tally in tallies.values() for failure in tally.failures]
    assert all(
        tally.faults for name, tally in tallies.items() if name != "a small disk becomes full"
    )


def ended(code: int, said: str) -> Ended:
    return Ended("mebt x", code, said)


def test_what_is_unclear_is_told_from_a_refusal() -> None:
    assert ended(1, "Error: a/b is damaged.").must_be_clear("a/b")
    assert ended(-signal.SIGKILL, "").must_be_clear("a/b")
    for unclear in (
        ended(1, "Error: a/bc is damaged."),
        ended(1, "Traceback (most recent call last):\nError: a/b"),
        ended(1, "Error: a/b\nError: a/b"),
        ended(-signal.SIGSEGV, "Error: a/b"),
        ended(1, ""),
    ):
        with pytest.raises(UnclearError):
            unclear.must_be_clear("a/b")
    with pytest.raises(DataLostError):
        ended(1, "Error: a/b is damaged.").must_succeed()


def test_what_was_finished_must_stay(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "train-00000.parquet").touch()
    done = keep_finished("tokenize", tmp_path, set())
    assert done == {"train-00000.parquet"}
    (tmp_path / "manifest" / "train-00000.parquet").unlink()
    with pytest.raises(DataLostError, match=r"train-00000\.parquet was finished, and is gone"):
        keep_finished("tokenize", tmp_path, done)
    with pytest.raises(WrongDataError):
        same(b"a", b"b", tmp_path)


def test_one_bit_is_flipped(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(9))
    flipped = flip(random.Random(0), tmp_path / "x")
    assert len(flipped) == 9
    assert sum(byte.bit_count() for byte in flipped) == 1


def test_the_table_adds_up() -> None:
    failures = [{"verdict": "DataLostError", "kind": "b", "number": 3, "what": "x"}]
    tallies = {"a": Count(2, 5, 1), "b": Count(1, 1000, 0, failures)}
    assert table(tallies).splitlines()[-2:] == [
        "| b | 1 | 1,000 | 1 | 0 | 0 |",
        "| all | 3 | 1,005 | 1 | 0 | 0 |",
    ]
    found = report(tallies, seed=7)
    assert (found["trials"], found["faults"], found["data_lost"]) == (3, 1005, 1)
    assert found["failures"] == failures


def test_the_readme_gets_the_table(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- faults -->\nold\n<!-- end of faults -->\nb\n")
    put_into(page, "new")
    assert page.read_text() == "a\n<!-- faults -->\nnew\n<!-- end of faults -->\nb\n"
    page.write_text("a")
    with pytest.raises(ValueError, match="has no marks"):
        put_into(page, "new")


@dataclass(frozen=True)
class Changes:
    """A process that makes three changes below a folder, two in vain, and one elsewhere."""

    folder: Path
    arm: Arm

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.arm()
        (self.folder.parent / "elsewhere").touch()
        self.folder.mkdir(exist_ok=True)
        (self.folder / "none").unlink(missing_ok=True)
        (self.folder / "a").write_bytes(b"")
        with suppress(OSError):
            (self.folder / "a").rename(self.folder / "b")
        (self.folder / "b").unlink()


@pytest.mark.parametrize("error", [None, errno.EIO])
def test_a_process_is_stopped_at_the_change_that_was_chosen(
    tmp_path: Path, error: int | None
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b").touch()
    process = fork([], run=Changes(folder, Interruption(folder, 2, error)))
    process.join(60)
    assert process.exitcode == (0 if error else -signal.SIGKILL)
    assert sorted(path.name for path in folder.iterdir()) == ["a", *("b" if not error else "")]
    process = fork([], run=Changes(tmp_path / "folder", Tally(folder, tmp_path / "tally")))
    (folder / "b").touch()
    process.join(60)
    assert (tmp_path / "tally").read_text() == "3"


def leave(arguments: list[str], environment: dict[str, str]) -> None:
    """Ends a process at once."""
    os._exit(0)


@pytest.mark.slow
def test_threads_that_fork_hear_the_right_exit_codes() -> None:
    """Another thread's start would read one of six of them, and leave 255."""

    def run(_: int) -> int | None:
        process = fork([], run=leave)
        assert has_ended(process)
        return process.exitcode

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run, range(24))) == {0}
