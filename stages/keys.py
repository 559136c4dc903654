"""What keys mean to a model that is given labels or actions, while somebody watches it draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch

from mebt import Conditions, MeBTConfig, StateShape, prepare_states
from pipeline.errors import ConfigError
from pipeline.play.video import Draw

TAKEN = ("", " ", "r")
"""No key, and those that play, pause and restart."""
FAR = 2.0
"""Standard deviations that an arrow moves a number from its mean, if nobody says how far."""
ARROWS = ((("ArrowLeft", "a"), ("ArrowRight", "d")), (("ArrowUp", "w"), ("ArrowDown", "s")))
"""Keys that make the first number of an action less and more, then those of the second."""


@dataclass(frozen=True)
class Action:
    """Numbers of a frame, and the keys that choose them."""

    name: str
    keys: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Controls:
    """What a watcher may choose of what a model is given."""

    model: MeBTConfig
    state: StateShape | None
    """That which actions are numbers of; None: there is none."""
    actions: tuple[Action, ...] = ()
    rest: int | None = None
    """The action while no key is down; None: any."""

    def about(self) -> Mapping[str, Any]:
        """Returns what the page is told."""
        actions = [{"name": action.name, "keys": action.keys} for action in self.actions]
        return {"labels": self.model.labels, "actions": actions, "rest": self.rest}

    def conditions(self, by: Draw) -> Conditions | None:
        """Returns what the window is given that is to be drawn."""
        if not (self.model.labels or self.model.states):
            return None
        labels = torch.tensor([-1 if by.label is None else by.label])
        return Conditions(labels if self.model.labels else None, self._states(by.actions))

    def _states(self, chosen: Sequence[int | None]) -> torch.Tensor | None:
        if self.state is None:
            return None
        length = self.model.grid[0]
        values = torch.full((1, length, self.state.width), nan)
        for place, action in enumerate(chosen):
            if action is not None:
                values[0, place] = torch.tensor(self.actions[action].numbers)
        frames = values.repeat_interleave(self.state.frames, dim=1)
        return prepare_states(self.model.states, {self.state.name: frames}, num_frames=length)


def choose_controls(
    model: MeBTConfig, name: str | None, keys: Sequence[str], rest: str | None
) -> Controls:
    """Decides what each key means. `keys` are KEY=NUMBERS, none: see `_usual`; `rest` NUMBERS.

    Raises ConfigError if the model has no state of this name, or if numbers are not its.
    """
    known = [state.name for state in model.states]
    if name is None and known:
        name = "action" if "action" in known else known[0]
    if name is not None and name not in known:
        raise ConfigError(
            f"--action {name}: the model knows {', '.join(known) or 'no states of frames'}."
        )
    if name is None:
        if keys or rest is not None:
            raise ConfigError("--key and --rest: the model knows no actions that keys could be.")
        return Controls(model, None)
    state = model.states[known.index(name)]
    actions, usual_rest = _usual(state)
    if keys:
        pairs = [key.rpartition("=") for key in keys]
        if taken := [key for key, equals, _ in pairs if equals and key.lower() in TAKEN]:
            raise ConfigError(
                f"--key {taken[0]}=…: the page has that key itself; name another, such as w."
            )
        actions = [Action(key, (key,), _numbers(state, "--key", said)) for key, _, said in pairs]
    if rest is not None:
        usual_rest = _numbers(state, "--rest", rest)
    if usual_rest is None:
        return Controls(model, state, tuple(actions))
    at_rest = Action("nothing", (), usual_rest)
    return Controls(model, state, (*actions, at_rest), len(actions))


def _usual(state: StateShape) -> tuple[list[Action], tuple[float, ...] | None]:
    """Returns actions, and that of no key: digits choose kinds, arrows move the first two numbers.

    Numbers begin from what is usual to the model.
    """
    if state.kinds:
        kinds = range(min(10, state.kinds))
        return [Action(str(k), (str(k),), (float(k),) * state.width) for k in kinds], None
    actions = []
    for place, pair in enumerate(ARROWS[: state.width]):
        for keys, sign in zip(pair, (-1, 1), strict=True):
            numbers = list(state.mean)
            numbers[place] += sign * FAR * state.std[place]
            name = f"{state.name}.{place} {'less' if sign < 0 else 'more'}"
            actions.append(Action(name, keys, tuple(numbers)))
    return actions, state.mean


def _numbers(state: StateShape, option: str, said: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in said.split(","))
    except ValueError:
        numbers = ()
    kinds = range(state.kinds)
    if len(numbers) != state.width or not all(map(isfinite, numbers)):
        wanted = "a number" if state.width == 1 else f"{state.width} numbers, as in 0.5,0"
        raise ConfigError(f"{option} …{said}: {state.name} of a frame is {wanted}.")
    if kinds and not all(number in kinds for number in numbers):
        raise ConfigError(f"{option} …{said}: {state.name} is one of 0 … {state.kinds - 1}.")
    return numbers
