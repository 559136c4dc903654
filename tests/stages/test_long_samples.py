"""Samples longer than a window: drawn in pieces, and the same wherever they were left off."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from pipeline.store import pieces
from pipeline.store.pieces import DIGEST, Pieces
from pipeline.store.reader import TokenStore
from tests.helpers.small import Flow, content

LONG = ("--frames", "20", "--set", "sample.num_samples=3", "--set", "sample.draft_steps=1")
LONG += ("--set", "sample.revise_rounds=0")


@pytest.fixture(scope="module")
def long(made: Flow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that an undisturbed run makes."""
    copied = made.copy(tmp_path_factory.mktemp("long") / "flow")
    copied.ok("sample", *LONG, out="long")
    return content(copied.root / "long")


@pytest.fixture
def run(made: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A place with the run alone; pieces are of two latent frames or more."""
    for name in ("run", "params.yaml"):
        (shutil.copytree if name == "run" else shutil.copy)(made.root / name, tmp_path / name)
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 2)
    copied = Flow.__new__(Flow)
    copied.root = tmp_path
    return copied


@contextmanager
def stopped_after(count: int) -> Iterator[None]:
    """Stops sampling, as a kill would, when so many pieces have been written."""
    written, add = [], Pieces.add

    def add_or_stop(self: Pieces, *args: Any) -> None:
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(add(self, *args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pieces, "add", add_or_stop)
        yield
    assert len(written) == count


def stop(flow: Flow, count: int, *more: str) -> list[Path]:
    """Draws so many pieces and no more; returns their files."""
    with stopped_after(count):
        assert flow.run("sample", *LONG, *more, out="long").exit_code == 1
    return sorted((flow.root / "long").glob("*.pieces/*"))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7])
def test_left_off_anywhere_it_goes_on_to_the_same_store(
    run: Flow, long: dict[str, bytes], count: int
) -> None:
    two = ("--set", "sample.batch_size=2")  # A batch of two, in five pieces, and one of one.
    assert len(stop(run, count, *two)) == count
    assert "3 drawn now" in run.ok("sample", *LONG, *two, out="long")
    assert content(run.root / "long") == long


def test_it_goes_on_where_it_was_and_says_so(
    run: Flow, long: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(run, 3)
    numbers, add = [], Pieces.add
    monkeypatch.setattr(
        Pieces,
        "add",
        lambda self, number, *rest: numbers.append(number) or add(self, number, *rest),
    )
    said = run.ok("sample", *LONG, out="long")
    assert "sample: 60/60 frames" in said
    assert "damaged" not in said
    assert numbers == [3, 4]
    assert content(run.root / "long") == long


def test_another_batch_size_begins_anew_and_draws_the_same(
    run: Flow, long: dict[str, bytes]
) -> None:
    stop(run, 3)
    run.ok("sample", *LONG, "--set", "sample.batch_size=1", out="long")
    assert content(run.root / "long") == long


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:100], lambda data: b""])
def test_a_damaged_piece_is_named_and_drawn_again(
    run: Flow, long: dict[str, bytes], damage: Any
) -> None:
    path = stop(run, 4)[1]
    path.write_bytes(damage(path.read_bytes()))
    said = run.ok("sample", *LONG, out="long")
    assert f"{path} is damaged: its bytes are not those" in said
    assert content(run.root / "long") == long


@pytest.mark.parametrize("name", ["tokens", "state.made", "state.noise", "state.predict.slots"])
def test_a_forged_piece_is_drawn_again(run: Flow, long: dict[str, bytes], name: str) -> None:
    """Its hash is right, but what it holds fits nothing."""
    path = stop(run, 2)[1]
    tensors = load(path.read_bytes()[DIGEST:])
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[:] = 99
    payload = save(tensors)
    store = TokenStore(run.root / "long", allow_partial=True)
    pieces = Pieces(store, path.parent.name, range(3), "cpu")
    path.write_bytes(pieces._digest(1, payload) + payload)
    assert f"{path} is damaged" in run.ok("sample", *LONG, out="long")
    assert content(run.root / "long") == long


def test_pieces_of_other_values_are_never_gone_on_with(run: Flow, long: dict[str, bytes]) -> None:
    stop(run, 2, "--set", "sample.seed=1")
    assert "seed = 1, not 0" in run.refused("sample", *LONG, out="long")
    theirs = run.root / "theirs"
    shutil.copytree(run.root / "long" / "sample-00000.pieces", theirs)
    run.ok("sample", *LONG, "--overwrite", out="long")
    assert content(run.root / "long") == long
    shutil.rmtree(run.root / "long")
    stop(run, 0)
    shutil.copytree(theirs, run.root / "long" / "sample-00000.pieces")
    assert "damaged" in run.ok("sample", *LONG, out="long")
    assert content(run.root / "long") == long


def test_what_a_kill_left_of_a_finished_shard_goes(run: Flow, long: dict[str, bytes]) -> None:
    run.ok("sample", *LONG, out="long")
    left = run.root / "long" / "sample-00000.pieces"
    left.mkdir()
    (left / "0000000-0000003-cpu-0000000").write_bytes(b"old")
    assert "nothing to do" in run.ok("sample", *LONG, out="long")
    assert content(run.root / "long") == long


def test_a_value_of_later_is_recorded_where_it_acts_alone(run: Flow) -> None:
    run.ok("sample", *LONG, out="long")
    settings = TokenStore(run.root / "long").info.extra["sample"]
    assert settings["total_frames"] == 10
    assert "redraw_frames" not in settings  # As in stores made before there was such a value.
    again = ("--set", "sample.redraw_frames=1")
    assert "no room for a new one beside 2" in run.refused("sample", *LONG, *again, out="again")
    short = ("--set", "sample.total_frames=4", *again)
    run.ok("sample", *LONG, *short, out="short")  # It wins over --frames.
    assert TokenStore(run.root / "short").info.extra["sample"]["redraw_frames"] == 1
