"""What keys mean: which actions there are, and what the model is then given."""

import pytest
import torch

from mebt import MeBTConfig, StateShape
from pipeline.errors import ConfigError
from pipeline.play.video import Draw
from stages.keys import Controls, choose_controls

NUMBERS = StateShape(name="speed", width=2, frames=2, mean=(0.0, 1.0), std=(1.0, 2.0))
KINDS = StateShape(name="action", width=1, frames=1, kinds=3)


def model(*states: StateShape, labels: tuple[str, ...] = ()) -> MeBTConfig:
    names = [
        *(["label"] if labels else []),
        *(s.name + ":integers" * (s.kinds > 0) for s in states),
    ]
    return MeBTConfig(
        layers=("encode", "decode"),
        grid=(3, 2, 2),
        codebook_size=5,
        width=8,
        num_heads=1,
        num_latents=2,
        conditions=tuple(names),
        labels=labels,
        states=states,
    )


def by(*actions: int | None, label: int | None = None) -> Draw:
    return Draw(0, label, 0, 1.0, actions)


def states(controls: Controls, draw: Draw) -> torch.Tensor:
    conditions = controls.conditions(draw)
    assert conditions is not None and conditions.states is not None
    return conditions.states


def test_arrows_move_numbers_from_what_is_usual() -> None:
    controls = choose_controls(model(NUMBERS), None, (), None)
    assert [action.numbers for action in controls.actions] == [
        *((-2, 1), (2, 1), (0, -3), (0, 5), (0, 1))
    ]
    assert controls.rest == 4
    # Mean 0 and deviation 1, of both frames of a latent frame; nothing is known of the last.
    expected = [[2, 0, 2, 0], [0, 0, 0, 0], [torch.nan] * 4]
    torch.testing.assert_close(states(controls, by(1, 4)), torch.tensor([expected]), equal_nan=True)


def test_digits_choose_kinds_and_nothing_any_of_them() -> None:
    controls = choose_controls(model(NUMBERS, KINDS), None, (), None)  # `action` before others.
    assert [action.keys for action in controls.actions] == [("0",), ("1",), ("2",)]
    assert controls.rest is None
    found = states(controls, by(2, None, 0))[0]
    assert found[:, :4].isnan().all()  # Nothing is known of speed.
    assert found[0, 4:].tolist() == [0, 0, 1]
    assert found[1, 4:].isnan().all()
    assert found[2, 4:].tolist() == [1, 0, 0]


def test_keys_and_rest_are_what_they_are_said_to_be() -> None:
    keys = ("ArrowUp=0.5,-1", "==2,3")
    controls = choose_controls(model(NUMBERS, KINDS), "speed", keys, "7,8")
    assert [(a.keys, a.numbers) for a in controls.actions] == [
        *((("ArrowUp",), (0.5, -1)), (("=",), (2, 3)), ((), (7, 8)))
    ]
    assert controls.rest == 2


def test_a_label_alone_and_nothing_at_all() -> None:
    controls = choose_controls(model(labels=("a", "b")), None, (), None)
    for label, place in ((1, 1), (None, -1)):
        conditions = controls.conditions(by(None, label=label))
        assert conditions is not None and conditions.labels is not None
        assert (conditions.labels.tolist(), conditions.states) == ([place], None)
    assert choose_controls(model(), None, (), None).conditions(by(None)) is None


@pytest.mark.parametrize(
    ("name", "keys", "rest", "said"),
    [
        ("sped", (), None, "--action sped: the model knows speed, action."),
        ("speed", ("a",), None, "--key …a: speed of a frame is 2 numbers"),
        ("speed", ("a=1",), None, "--key …1: speed of a frame is 2 numbers"),
        ("speed", ("a=1,x",), None, "--key …1,x: speed of a frame is 2 numbers"),
        ("speed", ("a=1,nan",), None, "--key …1,nan: speed of a frame is 2 numbers"),
        ("speed", (), "1", "--rest …1: speed of a frame is 2 numbers"),
        ("action", ("a=1,2",), None, "--key …1,2: action of a frame is a number."),
        ("action", ("a=3",), None, r"--key …3: action is one of 0 … 2."),
        ("action", (), "0.5", r"--rest …0.5: action is one of 0 … 2."),
    ],
)
def test_numbers_that_are_not_the_models_are_refused(
    name: str, keys: tuple[str, ...], rest: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_controls(model(NUMBERS, KINDS), name, keys, rest)
