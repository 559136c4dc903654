"""An output is gone on with, refused, or deleted so that a kill leaves nothing trusted."""

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage import places
from pipeline.storage.files import remove, write_json, write_text
from pipeline.storage.outputs import list_differences, prepare_output
from pipeline.storage.places import Folder
from tests.helpers.small import content


def test_differences_are_named_with_both_values() -> None:
    found = {"size": 16, "config": {"rate": 1, "same": [1, 2]}, "gone": "x"}
    wanted = {"size": 8, "config": {"rate": 1, "same": [1, 2], "new": True}, "more": None}
    assert list_differences(found, wanted) == [
        "size = 16, not 8",
        "config.new = null, not true",
        "gone = 'x', not null",
    ]
    assert list_differences(wanted, wanted) == []


def prepare(out: Path, record: str, wanted: dict[str, int], *, overwrite: bool = False) -> None:
    prepare_output(
        Folder(out),
        record,
        lambda: list_differences(json.loads((out / record).read_text()), wanted),
        what="cake",
        error=ConfigError,
        overwrite=overwrite,
        first="finished",
    )
    write_json(out / record, wanted)


@pytest.mark.parametrize("record", ["cake.json", ".hidden/cake.json"])
def test_the_same_output_is_kept_and_another_refused_or_replaced(
    tmp_path: Path, record: str
) -> None:
    out = tmp_path / "out"
    prepare(out, record, {"eggs": 3, "milk": 1})
    write_text(out / "crumbs", "")
    before = content(out)
    prepare(out, record, {"eggs": 3, "milk": 1})
    with pytest.raises(ConfigError) as refused:
        prepare(out, record, {"eggs": 4, "milk": 2})
    assert str(refused.value) == (
        f"{out} was made with eggs = 3, not 4; milk = 1, not 2; choose another --out, or give "
        "--overwrite."
    )
    assert content(out) == before
    prepare(out, record, {"eggs": 4, "milk": 2}, overwrite=True)
    assert content(out).keys() == {record}
    (out / record).unlink()
    write_text(out / "thesis.txt", "precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError) as refused:
            prepare(out, record, {}, overwrite=overwrite)
        assert str(refused.value) == (
            f"{out} holds thesis.txt but no {record}, so it is no cake; choose another --out."
        )
    assert (out / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("record", ["cake.json", ".hidden/cake.json"])
@pytest.mark.parametrize("kill", range(4))
def test_a_kill_leaves_the_record_and_nothing_finished_without_its_parts(
    tmp_path: Path, record: str, kill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = (tmp_path / record).parent
    prepare(tmp_path, record, {"eggs": 3})
    for path in (beside / "finished", tmp_path / "a-part", tmp_path / "part"):
        write_text(path, "")
    removed = 0

    def killed(path: Path) -> None:
        nonlocal removed
        if removed == kill:
            raise KeyboardInterrupt
        removed += 1
        remove(path)

    monkeypatch.setattr(places, "remove", killed)
    if kill < 3:
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, record, {"eggs": 4}, overwrite=True)
        assert (beside / "finished").exists() == (kill == 0)
    else:
        prepare(tmp_path, record, {"eggs": 4}, overwrite=True)
    monkeypatch.undo()
    assert json.loads((tmp_path / record).read_text()) == {"eggs": 4 if kill == 3 else 3}
    prepare(tmp_path, record, {"eggs": 4}, overwrite=True)
    assert content(tmp_path).keys() == {record}
