"""Rule worlds: what they draw obeys them, and how far anything else is from that is exact."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import exact, quality
from benchmarks.exact import ExactModel, least_loss, sample_exactly
from benchmarks.quality import METHODS, MODEL_CALLS, VALUES, chosen, judge, merged, try_once
from benchmarks.worlds import CODES, WORLDS, bounce, world
from mebt import SampleConfig
from pipeline.config import build

NAMES = list(WORLDS)
ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_world_draws_is_lawful_and_differs(name: str) -> None:
    rules = world(name)
    videos = rules.draw(16, seed=0)
    assert videos.shape == (16, *rules.grid)
    assert 0 <= videos.min() <= videos.max() < CODES
    assert len(np.unique(videos.reshape(16, -1), axis=0)) == 16
    assert [rules.distance(video) for video in videos] == [0] * 16
    assert not any(rules.is_blank(video) for video in videos)
    np.testing.assert_array_equal(videos, rules.draw(16, seed=0))
    assert not np.array_equal(videos, rules.draw(16, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_video_is_as_far_away_as_can_be(name: str) -> None:
    rules = world(name)
    # Wherever a lawful video has what moves, it is wrong: in at least as many places as move.
    moving = [code for role in rules.moving for code in rules.codes[role]]
    still = [code for code in range(CODES) if code not in moving]
    (video,) = rules.draw(1, seed=0)
    emptied = np.where(np.isin(video, moving), video[~np.isin(video, moving)][0], video)
    for blank in (emptied, np.random.default_rng(0).choice(still, rules.grid)):
        assert rules.is_blank(blank)
        assert rules.distance(blank) == 1


def test_distance_counts_wrong_places_in_sizes_of_the_square() -> None:
    rules = world("one-square")
    (video,) = rules.draw(1, seed=3)
    square = video >= 8
    wrong = video.copy()
    places = np.argwhere(square)[:5]
    wrong[tuple(places.T)] = video[~square][0]
    assert rules.distance(wrong) == pytest.approx(5 / square.sum())
    wrong[tuple(np.argwhere(~square)[:3].T)] = 63
    assert rules.distance(wrong) == pytest.approx(8 / square.sum())


@pytest.mark.slow
def test_distance_is_the_least_over_all_lawful_videos() -> None:
    rules = world("one-square")
    generator = np.random.default_rng(0)
    for _ in range(3):
        tokens = generator.integers(CODES, size=rules.grid)
        flat, best = tokens.reshape(-1), (np.inf, 0)
        for roles in rules.maps.reshape(len(rules.maps), -1):
            (ground, things) = (flat[roles == role] for role in (0, 1))
            for back, front in itertools.product(rules.codes[0], rules.codes[1]):
                wrong = np.sum(ground != back) + np.sum(things != front)
                best = min(best, (wrong, len(things)))
        assert rules.distance(tokens) == min(1.0, best[0] / best[1])


def test_a_square_in_two_colours_at_once_is_not_lawful() -> None:
    rules = world("hidden-square")
    video = rules.draw(64, seed=0)[5]
    seen = np.argwhere((video >= 8).any((1, 2)))[:, 0]
    last = seen[-1]
    other = video.copy()
    other[last:] = np.where(video[last:] >= 8, 8 + (video[last:] - 7) % 56, video[last:])
    assert rules.distance(video) == 0
    assert rules.distance(other) > 0


def test_things_are_thrown_back_at_the_borders() -> None:
    assert bounce(4, 1, 6, 8).tolist() == [4, 5, 4, 3, 2, 1, 0, 1]
    assert bounce(1, -1, 6, 4).tolist() == [1, 0, 1, 2]
    assert bounce(3, 0, 6, 3).tolist() == [3, 3, 3]
    assert bounce(0, 1, 3, 6, each=2).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_a_try_trains_and_samples_as_the_commands_do() -> None:
    few = ("train.max_steps=2", "train.validate_every=1", "model.width=16", "sample.num_samples=4")
    sections = chosen("one-square", few)
    assert sections["model"]["num_latents"] == VALUES["model"]["num_latents"]
    name, method = "one-square", "random, 64 steps"
    row = try_once(name, 1, sections, {method: {**METHODS[method], "draft_steps": 2}})
    assert list(row["losses"]) == [1, 2]
    check_fields({"set": [], **row})
    found = row["samples"][method]
    assert (found["lawful"], found["distance"]) == (0.0, 1.0)
    assert row["steps"] == 2


def test_long_worlds_are_learned_in_fewer_steps_unless_told_otherwise() -> None:
    steps = {name: chosen(name, ())["train"]["max_steps"] for name in NAMES}
    assert steps == {
        **dict.fromkeys(("one-square", "wrapping-square", "two-squares"), 4000),
        **dict.fromkeys(("hidden-square", "two-colours"), 1200),
    }
    assert chosen("two-colours", ["train.max_steps=7"])["train"]["max_steps"] == 7


MASKS = (10, 30, 50, 70, 90, 100)
FIELDS = {"set", "world", "seed", "steps", "parameters", "seconds_per_step", "losses", "samples"}


def check_fields(row: quality.Row) -> None:
    """Fails if a row has other fields than those that are said of every one."""
    assert row.keys() == FIELDS
    assert row["losses"] and row["samples"]
    for loss in row["losses"].values():
        assert loss.keys() == {"val_loss", *(f"val_loss/mask_{p}" for p in MASKS)}
    for found in row["samples"].values():
        assert found.keys() == {"lawful", "distance", "blank", "calls", "seconds"}


def test_every_way_to_sample_may_ask_the_model_as_often() -> None:
    for method in METHODS.values():
        config = build(SampleConfig, method, where="sample")
        calls = config.draft_steps + config.revise_rounds * config.revise_groups
        assert calls == MODEL_CALLS


def test_the_rows_that_were_found_have_the_fields_of_today_and_are_told_apart() -> None:
    rows = json.loads((ROOT / "benchmarks/quality.json").read_text("utf-8"))
    for row in rows:
        check_fields(row)
        assert row["world"] in WORLDS
        assert all(0 < found["calls"] <= MODEL_CALLS for found in row["samples"].values())
    assert len({(row["world"], row["seed"], *row["set"]) for row in rows}) == len(rows)


def test_the_page_shows_the_rows_of_today() -> None:
    rows = json.loads((ROOT / "benchmarks/quality.json").read_text("utf-8"))
    page = (ROOT / "docs/quality.md").read_text("utf-8")
    assert f"{quality.BEGIN}{quality.table(rows)}{quality.END}" in page


def test_the_table_has_a_line_for_each_model_and_a_column_for_each_way_to_sample() -> None:
    losses = {"2": {f"val_loss/mask_{share}": 0.125 * share for share in quality.SHARES}}
    first, *_, last = METHODS
    found = {"lawful": 0.5, "distance": 0.25, "blank": 0.0, "calls": 64, "seconds": 1.0}
    row = {"world": "two-squares", "seed": 1, "set": [], "steps": 2000, "losses": losses}
    rows = [
        {**row, "samples": {last: {**found, "blank": 0.125}}},
        {**row, "seed": 0, "samples": {first: found}},
        {
            **{**row, "world": "one-square", "samples": {first: found}},
            "set": ["train.precision=bf16-mixed", "train.schedule=linear"],
        },
    ]
    _, _, one, zero, two = quality.table(rows).splitlines()
    assert one.startswith("| `one-square` | `train.schedule=linear` | 1 | 2,000 | 1.2500 | 6.2500")
    assert zero.startswith("| `two-squares` |  | 0 |") and "| 50.0%, 0.25 |  |" in zero
    assert two.endswith("|  | 50.0%, 0.25, 12% empty |") and "| 1 |" in two


def test_a_row_that_is_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row, *_) = json.loads((ROOT / "benchmarks/quality.json").read_text("utf-8"))
    out, page = tmp_path / "rows.json", tmp_path / "page.md"
    page.write_text(f"Before\n{quality.BEGIN}old\n{quality.END}After\n")
    for seed in (0, 1):
        quality.write_row(out, {**row, "seed": seed}, page)
    shown = quality.table([{**row, "seed": 0}, {**row, "seed": 1}])
    assert page.read_text() == f"Before\n{quality.BEGIN}{shown}{quality.END}After\n"
    monkeypatch.setattr("sys.argv", ["quality", "--page", str(page)])
    with pytest.raises(SystemExit, match="2"):
        quality.main()
    assert "--page shows the rows of --out" in capsys.readouterr().err


def small_row(seed: int, loss: float, method: str) -> quality.Row:
    losses = {"2": {"val_loss": loss}}
    return {"world": "w", "seed": seed, "set": ["a"], "losses": losses, "samples": {method: loss}}


def test_a_row_takes_the_place_of_its_own_and_keeps_samples_of_the_same_training() -> None:
    rows = [small_row(0, 1.5, "x"), small_row(1, 1.5, "x")]
    same, other = small_row(0, 1.5, "y"), small_row(0, 1.25, "y")
    assert merged(rows, same) == [{**same, "samples": {"x": 1.5, "y": 1.5}}, rows[1]]
    assert merged(rows, other) == [other, rows[1]]
    for key, value in {"world": "v", "seed": 2, "set": []}.items():
        assert merged(rows, {**same, key: value}) == [*rows, {**same, key: value}]


@pytest.mark.slow
def test_rows_are_written_after_each_training_which_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revised = {"draft_steps": 3, "revise_rounds": 2, "revise_groups": 4, "strategy": "random"}
    methods = {"twice": {"draft_steps": 2}, "and revised": {**quality.PLAIN, **revised}}
    monkeypatch.setattr(quality, "METHODS", methods)
    monkeypatch.setattr(quality, "TRAIN_WINDOWS", 64)
    values = ["train.max_steps=2", "train.validate_every=1", "train.validation_windows=2"]
    values += ["train.batch_size=2", "train.preview_every=0"]
    values += ["model.width=16", "sample.num_samples=2"]
    out, keep = tmp_path / "rows.json", tmp_path / "keep"
    words = ["quality", "--world", "one-square", "--seeds", "2"]
    words += [word for value in values for word in ("--set", value)]
    words += ["--keep", str(keep), "--out", str(out)]
    theirs = small_row(0, 1.5, "x")
    out.write_text(json.dumps([theirs]), encoding="utf-8")

    def stopped(*args: Any, **settings: Any) -> None:
        if args[3].seed == 1:
            raise KeyboardInterrupt
        return train(*args, **settings)

    train = quality.train
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quality, "train", stopped)
        patch.setattr("sys.argv", [*words, "--method", "twice"])
        quality.main()
    kept, first = json.loads(out.read_text("utf-8"))
    assert kept == theirs
    assert (first["seed"], first["set"]) == (0, values)
    check_fields(first)
    assert [found["calls"] for found in first["samples"].values()] == [2]

    (half,) = keep.glob("one-square/samples-0-*.json")
    out.write_text(json.dumps([theirs, {**first, "steps": -1}]), encoding="utf-8")
    monkeypatch.setattr("sys.argv", words)
    quality.main()
    kept, again, second = json.loads(out.read_text("utf-8"))
    assert kept == theirs
    assert again == {**first, "samples": again["samples"]}
    assert again["samples"]["twice"] == first["samples"]["twice"]
    for row in (again, second):
        check_fields(row)
        assert {name: found["calls"] for name, found in row["samples"].items()} == {
            "twice": 2,
            "and revised": 3 + 2 * 4,
        }

    half.unlink()  # As if it had been stopped while it drew these.
    quality.main()
    _, anew, _ = json.loads(out.read_text("utf-8"))
    assert anew["samples"]["twice"]["calls"] == 2


def test_samples_are_judged_by_the_rules() -> None:
    rules = world("one-square")
    lawful = rules.draw(3, seed=5)
    blank = np.zeros((1, *rules.grid), np.int64)
    found = judge(rules, np.concatenate([lawful, blank]))
    assert found == {"lawful": 0.75, "distance": 0.25, "blank": 0.25}


def test_what_leaves_at_one_border_comes_back_at_the_other() -> None:
    rules = world("wrapping-square")
    first = np.zeros((8, 8), np.int64)
    first[0:2, 6:8] = 20
    moves = {
        speed: np.stack([np.roll(first, (-t, speed * t), axis=(0, 1)) for t in range(8)])
        for speed in (2, 3)
    }
    assert rules.distance(moves[2]) == 0
    assert rules.distance(moves[3]) > 0.1
    turned = np.concatenate([moves[2][:4], moves[2][4:0:-1]])
    assert rules.distance(turned) > 0.1


@pytest.mark.parametrize("name", ["one-square", "hidden-square"])
def test_the_exact_model_knows_what_the_rules_tell_and_nothing_else(name: str) -> None:
    rules = world(name)
    (video,) = torch.from_numpy(rules.draw(1, seed=2)).flatten(1)
    positions = torch.arange(len(video))[None]
    model = ExactModel(rules)
    last = model(video[None, :-1], positions[:, :-1], positions[:, -1:]).exp()
    assert last[0, 0, video[-1]] == pytest.approx(1)
    blind = model(video[None, :0], positions[:, :0], positions).exp()[0]
    torch.testing.assert_close(blind.sum(1), torch.ones(len(video)))
    drawn = rules.draw(2000, seed=3).reshape(2000, -1)
    for place in (0, 27, len(video) - 1):
        shares = np.bincount(drawn[:, place], minlength=CODES) / 2000
        np.testing.assert_allclose(blind[place].numpy(), shares, atol=0.035)


def test_samples_of_the_exact_model_are_lawful() -> None:
    rules = world("one-square")
    found = sample_exactly(rules, calls=64, count=4)
    assert found == {"lawful": 1.0, "distance": 0.0, "blank": 0.0}
    assert least_loss(rules, 0.5, count=2) == pytest.approx(0, abs=1e-3)
    assert 2 < least_loss(rules, 1.0, count=2) < 3


@pytest.mark.parametrize("count", ["0", "-3"])
def test_no_videos_are_refused_in_one_line(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["exact", "--world", "one-square", "--videos", count])
    with pytest.raises(SystemExit) as stopped:
        exact.main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"error: --videos must be at least 1, got {count}.\n")
    assert not said.out
