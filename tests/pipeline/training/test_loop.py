"""The loop's parts: moving average, learning rate, steps that fail, values it takes."""

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from pipeline.errors import PipelineError
from pipeline.seeds import step_seed
from pipeline.training.averages import WeightAverage
from pipeline.training.checkpoint import load_last
from pipeline.training.loop import run_loop
from pipeline.training.task import LoopConfig, Task, learning_rate


def test_the_average_follows_slowly_and_steps_aside() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(0.9)
    average.update(model, 1)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 5
        model[1].num_batches_tracked += 7
    average.update(model, 1000)
    with average.inside(model):
        torch.testing.assert_close(model[0].weight.detach(), before + 0.1)
        torch.testing.assert_close(model[1].running_mean, torch.tensor([0.5, 0.5]))
        assert model[1].num_batches_tracked == 7  # Other buffers are copied.
    torch.testing.assert_close(model[0].weight.detach(), before + 1)
    assert model[1].running_mean.tolist() == [5, 5]


def test_the_average_begins_fast() -> None:
    # Weights that jump from 0 to 1 at once: of 20 steps, the first may not weigh 0.99**20 = 0.82.
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(0.99)
    for step in range(1, 21):
        with torch.no_grad():
            model.weight.fill_(float(step > 1))
        average.update(model, step)
    assert 0.99 < float(average.tensors["weight"]) < 1


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = LoopConfig(max_steps=100, warmup_steps=10, cosine=True, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert learning_rate(10**6, LoopConfig(learning_rate=0.5)) == 0.5


def test_the_learning_rate_may_stay_before_it_falls() -> None:
    config = LoopConfig(
        max_steps=110, warmup_steps=10, cosine=True, stable_share=0.6, learning_rate=1.0
    )
    rates = [learning_rate(step, config) for step in range(111)]
    assert set(rates[9:71]) == {1.0}
    assert rates[70:] == sorted(set(rates[70:]), reverse=True)
    assert rates[90] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    with pytest.raises(ValueError, match="stable_share must be in"):
        LoopConfig(cosine=True, stable_share=1.0)


def test_seeds_of_steps_and_rows_are_all_different() -> None:
    seeds = {
        step_seed(s, step, row) for s in range(3) for step in range(40) for row in range(-5, 40)
    }
    assert len(seeds) == 3 * 40 * 45


def task_of(loss, out: Path) -> Task:
    return Task(
        name="t",
        batches=lambda _: [torch.ones(1, 2)],
        names=lambda step: [f"window {step}"],
        loss=loss,
        validate=lambda _: {},
        export=lambda *_: None,
        result=out / "result",
        rate_name="windows",
        rate_per_step=1,
    )


@pytest.mark.parametrize("found", [1, 4])
def test_the_gradient_scale_of_half_precision_is_resumed(tmp_path: Path, found: int) -> None:
    """On a CPU, where Fabric offers no 16-mixed of its own accord."""

    def run(max_steps: int) -> dict:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        fabric = Fabric(
            accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler)
        )
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        task = task_of(lambda module, batch, _: (module(batch).sum() ** 2, {}), tmp_path)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run_loop(fabric, model, optimizer, task, LoopConfig(max_steps=max_steps), tmp_path)
        return scaler.state_dict()

    run(found)
    resumed = run(5)
    assert resumed["scale"] == 8.0 * 2**2  # Doubled after every two steps.
    assert resumed["_growth_tracker"] == 1


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (lambda x: x / 0, "the loss is inf"),
        (lambda x: (x - x.detach()).sqrt(), "the norm of the gradient is inf"),
    ],
)
def test_a_step_into_nowhere_names_its_windows_and_keeps_the_checkpoint(
    tmp_path: Path, broken, what: str
) -> None:
    def loss(module: nn.Module, batch: torch.Tensor, step: int):
        found = module(batch).square().sum()
        return (broken(found) if step == 2 else found), {}

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = LoopConfig(max_steps=5, checkpoint_every=1)
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(PipelineError, match=f"{what} at step 3, on window 2; the last checkpoint"):
        run_loop(fabric, model, optimizer, task_of(loss, tmp_path), config, tmp_path)
    saved = load_last(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == 2
    assert torch.equal(saved.tensors["model.weight"], model.weight.detach())
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 6, "accumulate": 4}, "multiple of accumulate"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"seed": -1}, "seed must be in 0"),
        ({"seed": 2**63}, "seed must be in 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_impossible_values_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopConfig(**fields)
