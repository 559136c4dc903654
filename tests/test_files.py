import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.storage import files
from pipeline.storage.files import (
    keep_apart,
    lock,
    read_json,
    replacing,
    sha256_file,
    write_bytes,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_bytes(path, b"old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_replaces_a_folder_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    for content in ("one", "two"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [*path.iterdir()] == [path / "two"]


@pytest.mark.parametrize(
    ("out", "how"),
    [("a/b", "is"), ("a", "holds"), ("a/b/c", "lies inside"), ("link", "is"), ("a/x", None)],
)
def test_an_output_keeps_apart_from_what_is_read(tmp_path: Path, out: str, how: str | None) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    if how is None:
        keep_apart(tmp_path / out, tmp_path / "a" / "b", None)
        return
    with pytest.raises(PipelineError, match=f"{out} {how} .*, which is read; choose another"):
        keep_apart(tmp_path / out, None, tmp_path / "a" / "b")
    if how == "lies inside":
        keep_apart(tmp_path / out, tmp_path / "a" / "b", inside=True)


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null", "/dev/null/x", "/proc/x/y"])
def test_no_folder_can_be_made_there(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(PipelineError, match=r"cannot be a folder: .*; choose another place\."),
        lock(tmp_path / out),
    ):
        pass


def test_only_a_file_is_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is a folder, not a file; choose"):
        write_bytes(tmp_path, b"")
    with pytest.raises(PipelineError, match="/dev/null is no ordinary file; choose"):
        write_bytes(Path("/dev/null"), b"")
    with pytest.raises(PipelineError, match="cannot be a folder: File exists; choose"):
        write_bytes(Path(__file__) / "x", b"")


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"a": [1, None]})
    assert read_json(tmp_path / "run.json", PipelineError, "run") == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "\xff"])
def test_broken_json_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(PipelineError, match=r"run\.json is not the JSON of a run") as error:
        read_json(tmp_path / "run.json", PipelineError, "run")
    assert "\n" not in str(error.value)


def test_missing_json_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is no token store"):
        read_json(tmp_path / "store.json", PipelineError, "token store")


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected


@pytest.mark.parametrize(
    ("shared", "system"), [("", "POSIX"), ("shared=True", "POSIX"), ("", "Windows")]
)
def test_a_second_writer_is_refused_and_a_dead_one_forgotten(
    tmp_path: Path, shared: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "Windows":
        monkeypatch.setattr(files, "fcntl", None)
    script = (
        "import sys, pathlib; from pipeline.storage import files\n"
        f"files.fcntl = {'files.fcntl' if system == 'POSIX' else None}\n"
        f"with files.lock(pathlib.Path(sys.argv[1]), {shared}):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with (
            pytest.raises(PipelineError, match="is being written by another process"),
            lock(tmp_path),
        ):
            pass
        other.kill()
    with lock(tmp_path):
        pass


def test_on_windows_others_of_a_run_come_in_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with lock(tmp_path) as let_others_in:
        let_others_in()
        with lock(tmp_path, shared=True):
            pass
        with pytest.raises(PipelineError, match="is being written by another"), lock(tmp_path):
            pass


def test_a_lock_is_taken_as_network_file_systems_want_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)  # NFS puts the one in place of the other.
    with lock(tmp_path) as let_others_in:
        let_others_in()


def test_others_of_a_run_come_in_when_they_are_let_in(tmp_path: Path) -> None:
    with lock(tmp_path) as let_others_in:
        with pytest.raises(PipelineError, match="by another"), lock(tmp_path, shared=True):
            pass
        let_others_in()
        other = lock(tmp_path, shared=True)
        other.__enter__()
    with pytest.raises(PipelineError, match="is being written by another"), lock(tmp_path):
        pass  # The first one is gone, but not the other.
    other.__exit__(None, None, None)
    with lock(tmp_path):
        pass
