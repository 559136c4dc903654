"""Worlds that follow labels and actions: what obeys, what is only lawful, and the table of both."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import steering
from benchmarks.quality import chosen_of
from benchmarks.steered_worlds import (
    COURSES,
    LABELS,
    MOVES,
    STEERED_WORLDS,
    colour_of,
    follows,
    is_walk,
    moves_by,
    paint,
    path_of,
    walk,
)


@pytest.mark.parametrize("name", STEERED_WORLDS)
def test_what_a_world_draws_is_lawful_and_obeys(name: str) -> None:
    world = STEERED_WORLDS[name]
    drawn = world.draw(40, 3)
    assert drawn.tokens.shape == (40, 8, 6, 6)
    assert all(world.lawful(video) for video in drawn.tokens)
    assert all(world.obeys(video, drawn, row) for row, video in enumerate(drawn.tokens))
    np.testing.assert_array_equal(drawn.tokens, world.draw(40, 3).tokens)
    others = [world.obeys(video, drawn, row - 1) for row, video in enumerate(drawn.tokens)]
    assert np.mean(others) < 0.3


@pytest.mark.parametrize("name", STEERED_WORLDS)
def test_one_wrong_token_breaks_the_law(name: str) -> None:
    world = STEERED_WORLDS[name]
    drawn = world.draw(1, 0)
    for place in ((0, 0, 0), (3, 2, 2), (7, 5, 5)):
        wrong = drawn.tokens[0].copy()
        wrong[place] = 5 if wrong[place] != 5 else 0
        assert not world.lawful(wrong)
        assert not world.obeys(wrong, drawn, 0)
    for constant in (0, 2, 5):
        assert not world.lawful(np.full((8, 6, 6), constant))


def test_a_label_is_a_course_and_a_colour() -> None:
    for label in LABELS:
        video = paint(path_of(label, 2, 1), 1, colour_of(label))
        assert [name for name in LABELS if follows(video, name)] == [label]
        assert not follows(paint(path_of(label, 2, 1), 1, 7 - colour_of(label)), label)
    assert {tuple(np.sign(course)) for course in COURSES.values()} == set(COURSES.values())


def test_actions_move_the_square_into_their_frame_and_not_beyond_the_border() -> None:
    east = MOVES.index((0, 1))
    rows, columns = walk(2, 2, np.array([east] * 8))
    assert rows.tolist() == [2] * 8
    assert columns.tolist() == [2, 3, 4, 4, 4, 4, 4, 4]
    video = paint((rows, columns), 0, 3)
    actions = np.full((8, 1), east, np.float32)
    assert moves_by(video, actions)
    actions[0] = 0  # Acts on nothing.
    assert moves_by(video, actions)
    actions[1] = 0
    assert not moves_by(video, actions)
    assert is_walk(video)
    columns[4:] -= 2
    assert not is_walk(paint((rows, columns), 0, 3))


@pytest.mark.slow
def test_a_try_trains_samples_and_writes_the_table(tmp_path: Path) -> None:
    few = ("train.max_steps=1", "model.width=16", "model.num_heads=2", "train.validate_every=1")
    few += ("sample.num_samples=3", "sample.draft_steps=1", "train.validation_windows=4")
    sections = chosen_of(steering.VALUES, few)
    few_strengths = {"1": {}, "2": {"guidance": 2.0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "STRENGTHS", few_strengths)
        patch.setattr(steering, "COUNTS", {"train": 64, "test": 4})
        rows = [steering.try_world(name, sections, tmp_path) for name in STEERED_WORLDS]
    assert [list(row["samples"]) for row in rows] == [["asked for nothing", "1", "2"]] * 2
    page = tmp_path / "page.md"
    page.write_text(f"before\n{steering.BEGIN}old\n{steering.END}after\n")
    steering.write_page(rows, page)
    said = page.read_text()
    assert said.startswith(f"before\n{steering.BEGIN}\n| guidance | labels: lawful | labels: obeys")
    assert "| 2 | 0.0% | 0.0% | 0.0% | 0.0% |" in said
    assert said.endswith(f"{steering.END}after\n")
    assert steering.BEGIN in steering.PAGE.read_text()


def test_samples_are_judged_by_what_they_were_asked_for() -> None:
    world = STEERED_WORLDS["actions"]
    drawn = world.draw(4, 0)
    tokens = drawn.tokens.copy()
    tokens[1] = tokens[0]
    tokens[2] = 0
    assert steering.judge(world, tokens, drawn) == {"lawful": 0.75, "obeys": 0.5}
