"""What windows are given beside tokens, in the model, its cache, its file and the sampler."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mebt import (
    CachedPredictor,
    Conditions,
    MeBT,
    MeBTConfig,
    SampleConfig,
    StateShape,
    load_model,
    model_metadata,
    prepare_states,
    sample_frames,
    save_model,
)
from mebt.guidance import steer
from mebt.optim import MuonAdamW, make_optimizer
from tests.mebt.test_kv_cache import GRID, KINDS, K

SPEED = StateShape(name="speed", width=2, frames=2, mean=(1.0, -2.0), std=(0.5, 4.0))
KEY = StateShape(name="key", width=1, frames=2, kinds=3)
CONDITIONS = ("label", "speed", "key:integers")
LABELS = ("jump", "run", "sit")


def make(*layers: str, **fields: Any) -> MeBT:
    torch.manual_seed(0)
    given = {"conditions": CONDITIONS, "labels": LABELS, "states": (SPEED, KEY)}
    config = MeBTConfig(
        layers=layers or KINDS["published"],
        **{"width": 12, "num_heads": 2, "num_latents": 4, "codebook_size": K, "grid": GRID},
        **{**given, **fields},
    )
    model = MeBT(config)
    model.initialize(0.5)
    return model.eval().requires_grad_(False)


def without_conditions(model: MeBT) -> MeBT:
    plain = MeBT(replace(model.config, conditions=(), labels=(), states=()))
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("condition_")}
    plain.load_state_dict(kept)
    return plain.eval().requires_grad_(False)


def given(batch: int = 2, frames: int = GRID[0]) -> Conditions:
    generator = Generator().manual_seed(1)
    labels = torch.arange(batch) % len(LABELS)
    speed = torch.randn(batch, 2 * frames, 2, generator=generator)
    key = torch.randint(3, (batch, 2 * frames, 1), generator=generator).float()
    states = prepare_states([SPEED, KEY], {"speed": speed, "key": key}, num_frames=frames)
    return Conditions(labels, states)


def inputs(num_context: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.rand(batch, 30, generator=Generator().manual_seed(2)).argsort(1)
    tokens = torch.randint(K, (batch, num_context), generator=Generator().manual_seed(3))
    return tokens, order[:, :num_context], order[:, num_context:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_context", [0, 11])
def test_dropped_conditions_leave_an_unconditional_model(kind: str, num_context: int) -> None:
    model = make(*KINDS[kind])
    expected = without_conditions(model)(*inputs(num_context))
    dropped = given().without(torch.tensor([True, True]))
    assert torch.equal(model(*inputs(num_context)), expected)
    assert torch.equal(model(*inputs(num_context), conditions=dropped), expected)
    assert not torch.equal(model(*inputs(num_context), conditions=given()), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_predicts_what_the_model_does_of_any_conditions(kind: str) -> None:
    model = make(*KINDS[kind])
    incremental = CachedPredictor(model)
    both = given()
    others = both._replace(labels=both.labels.flip(0))
    for conditions in (None, both, others, both.without(torch.tensor([True, False])), None):
        for num_context in (0, 12, 20, 11, 0):
            expected = model(*inputs(num_context), conditions=conditions)
            found = incremental(*inputs(num_context), conditions=conditions)
            rows = found[:, : expected.shape[1]]
            torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_number_of_a_frame_changes_that_latent_frame_alone(number: int) -> None:
    # Without layers that mix targets, what is added shows where it is added.
    model = make("decode", conditions=("speed",), labels=(), states=(SPEED,))
    values = torch.zeros(1, 6, 2)
    changed = values.clone()
    changed[0, 2 * number] = 9.0
    none = torch.zeros(1, 0, dtype=torch.int64)
    logits = [
        model(
            *(none, none, torch.arange(30)[None]),
            conditions=Conditions(states=prepare_states([SPEED], {"speed": x}, num_frames=3)),
        )
        for x in (values, changed)
    ]
    differs = (logits[0] != logits[1]).any(2).reshape(GRID).any(2).any(1)
    assert differs.tolist() == [frame == number for frame in range(3)]


def test_states_are_normalised_and_lie_one_behind_the_other() -> None:
    values = torch.tensor([[[1.0, -2.0], [2.0, 2.0], [0.0, torch.nan], [1.0, -6.0]]])
    found = prepare_states([SPEED], {"speed": values}, num_frames=2)
    expected = torch.tensor([[[0.0, 0.0, 2.0, 1.0], [-2.0, torch.nan, 0.0, -1.0]]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_kinds_are_one_hot_and_a_causal_first_frame_is_repeated() -> None:
    values = torch.tensor([[[2.0], [0.0], [torch.nan]]])
    found = prepare_states([KEY], {"key": values}, num_frames=2)
    nan = [torch.nan] * 3
    expected = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, *nan]]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_state_that_is_not_given_is_unknown() -> None:
    key = torch.zeros(1, 6, 1)
    found = prepare_states([SPEED, KEY], {"key": key}, num_frames=3)
    assert found[..., :4].isnan().all()
    assert not found[..., 4:].isnan().any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key": torch.full((1, 6, 1), 3.0)}, "key is 3, but the model knows the whole numbers"),
        ({"key": torch.full((1, 6, 1), 0.5)}, "key is 0.5, but"),
        ({"key": torch.full((1, 6, 1), -1.0)}, "key is -1, but"),
        ({"speed": torch.zeros(1, 6, 3)}, "speed has 3 numbers a frame, but the model knows 2"),
        ({"speed": torch.zeros(1, 4, 2)}, "speed is given for 4 frames, but 3 latent frames"),
    ],
)
def test_states_that_do_not_fit_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_states([SPEED, KEY], values, num_frames=3)


def test_conditions_that_do_not_fit_are_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="conditions are given to a model that knows none"):
        without_conditions(model)(*inputs(3), conditions=given())
    with pytest.raises(ValueError, match="states must be of 3 latent frames with 10 numbers"):
        model(*inputs(3), conditions=Conditions(states=torch.zeros(2, 2, 10)))
    with pytest.raises(ValueError, match="must hold labels or states"):
        model(*inputs(3), conditions=Conditions())
    with pytest.raises(ValueError, match="labels are given to a model that knows none"):
        only = make(conditions=("speed",), labels=(), states=(SPEED,))
        only(*inputs(3), conditions=Conditions(torch.zeros(2, dtype=torch.int64)))


def test_windows_of_conditions_are_unknown_behind_their_end() -> None:
    conditions = given(frames=4)
    assert torch.equal(conditions.window(0, 4).states, conditions.states)
    window = conditions.window(2, 3)
    assert torch.equal(window.states[:, :2], conditions.states[:, 2:])
    assert window.states[:, 2].isnan().all()
    assert torch.equal(window.labels, conditions.labels)


@pytest.mark.parametrize("known", [True, False])
def test_every_parameter_gets_a_gradient_even_if_all_is_unknown(known: bool) -> None:
    model = make().requires_grad_(True)
    conditions = given() if known else given().without(torch.tensor([True, True]))
    model(
        *inputs(11), torch.zeros(2, 19, dtype=torch.int64), conditions=conditions
    ).total.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None]
    used = {name for name, grad in grads.items() if "condition_" in name and grad.any()}
    assert used == ({name for name in grads if "condition_" in name} if known else set())


def test_only_layers_are_muons() -> None:
    model = make()
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.0, kind="muon")
    assert isinstance(optimizer, MuonAdamW)
    of_muon = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert of_muon <= {id(parameter) for parameter in model.blocks.parameters()}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len(list(model.parameters()))


# The model's file.


def test_a_file_says_what_the_model_knows(tmp_path: Path) -> None:
    model, path = make(), tmp_path / "model.safetensors"
    save_model(path, model)
    loaded = load_model(path)
    assert loaded.config == model.config
    assert torch.equal(
        loaded(*inputs(11), conditions=given()), model(*inputs(11), conditions=given())
    )


def test_a_file_of_an_unconditional_model_says_nothing_of_conditions(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, without_conditions(make()))
    config = model_metadata(path)["config"]
    assert not [word for word in ("conditions", "labels", "states") if word in config]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conditions": ("label",)}, "conditions are .'label'., but it knows"),
        ({"labels": ("run", "run")}, "labels must differ"),
        ({"labels": ("run", "")}, "labels must be texts"),
        ({"conditions": ("label:integers",)}, "is no condition"),
        ({"conditions": ("../x",)}, "'../x' is no condition"),
        ({"conditions": ("key", "key:integers")}, "conditions must name different things"),
    ],
)
def test_impossible_conditions_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width of speed must be a whole number"),
        ({"mean": (1.0,)}, "mean of speed must be finite, one for each number"),
        ({"mean": (1.0, float("nan"))}, "mean of speed must be finite"),
        ({"std": (1.0, 0.0)}, "std of speed must be above 0"),
        ({"kinds": 1 << 15, "mean": (), "std": ()}, "inputs of speed"),
        ({"name": "a b"}, "a state must have a name"),
    ],
)
def test_impossible_states_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEED, **fields)


# Sampling.

SHORT = SampleConfig(draft_steps=4, revise_rounds=1, revise_groups=3, bootstrap_steps=1)
Draw = Callable[[SampleConfig], Tensor]


def draw(model: MeBT, config: SampleConfig, conditions: Conditions | None = None) -> Tensor:
    return sample_frames(
        CachedPredictor(model), GRID, config, numbers=[4, 9], conditions=conditions
    )


def test_samples_follow_their_conditions() -> None:
    model = make()
    plain = draw(model, SHORT)
    assert torch.equal(plain, draw(without_conditions(model), SHORT))
    assert not torch.equal(plain, draw(model, SHORT, given()))


def test_guidance_of_1_is_none_bit_for_bit() -> None:
    model, arguments = make(), inputs(11)
    known = model(*arguments, conditions=given())
    unguided = steer(model, given(), 30)((1.0, 1.0))(*arguments)
    assert torch.equal(unguided, known)
    # Even where the conditions are dropped in the same batch, as when it passes 1 on its way.
    passing = steer(model, given(), 19)((1.0, 3.0))(*arguments)
    torch.testing.assert_close(passing[:, 0:19], known)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0), (1.0, 1), (2.5, 2.5)])
def test_guidance_moves_away_from_what_is_said_without(scale: float, expected: float) -> None:
    model, arguments = make(), inputs(11)
    known, unknown = model(*arguments, conditions=given()), model(*arguments)
    found = steer(model, given(), 30)((scale, scale))(*arguments)[:, 0:19]
    torch.testing.assert_close(found, unknown + expected * (known - unknown))


def test_a_pair_of_guidances_goes_with_the_share_that_is_open() -> None:
    model = make()
    predict = steer(model, given(), 30)((5.0, 2.0))
    for num_context in (0, 10, 29):
        scale = 2 + 3 * (30 - num_context) / 30
        arguments = inputs(num_context)
        known, unknown = model(*arguments, conditions=given()), model(*arguments)
        expected = unknown + scale * (known - unknown)
        torch.testing.assert_close(predict(*arguments)[:, 0:30], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["remask", "random", "confidence"])
def test_drafts_and_revisions_are_guided_apart(strategy: str) -> None:
    model = make()
    base = replace(SHORT, strategy=strategy, temperature=1.0)
    drawn = [
        draw(model, replace(base, guidance=first, revise_guidance=last), given())
        for first, last in ((1.0, 1.0), (4.0, 1.0), (1.0, 4.0), (0.0, 0.0))
    ]
    for i in range(len(drawn)):
        assert not any(torch.equal(drawn[i], drawn[j]) for j in range(i))
    assert torch.equal(drawn[3], draw(model, base))  # Conditions are ignored, then.


@pytest.mark.slow
@pytest.mark.parametrize("total", [None, 5])
def test_a_guided_sample_does_not_depend_on_its_batch(total: int | None) -> None:
    model = make()
    config = replace(
        SHORT, guidance=(3.0, 1.5), revise_guidance=2.0, total_frames=total, context_frames=1
    )
    conditions = given(batch=3, frames=total or GRID[0])
    predict = CachedPredictor(model)

    def several(rows: list[int]) -> Tensor:
        predict.reset()
        chosen = conditions.changed(lambda x: x[rows])
        return sample_frames(predict, GRID, config, numbers=rows, conditions=chosen)

    together = several([0, 1, 2])
    for row in range(3):
        assert torch.equal(several([row])[0], together[row])


def test_long_videos_follow_the_states_of_their_own_frames() -> None:
    model = make()
    config = replace(SHORT, total_frames=7, context_frames=1, temperature=1.0)
    conditions = given(frames=7)
    states = conditions.states.clone()
    states[:, 5:] += 3.0  # The last window begins with frame 4.
    before, after = (
        draw(model, config, c) for c in (conditions, conditions._replace(states=states))
    )
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_senseless_guidance_is_refused() -> None:
    for fields in ({"guidance": -1.0}, {"guidance": (1.0, 1e9)}, {"revise_guidance": -0.1}):
        with pytest.raises(ValueError, match="guidance must be in 0 … 1000"):
            SampleConfig(**fields)
