"""Muon beside AdamW, as one optimizer."""

import pytest
import torch

from mebt import MeBT, MeBTConfig, optim
from mebt.optim import BETAS, EPS, MUON_RATE, make_optimizer, orthogonal
from pipeline.training.checkpoint import optimizer_tensors, restore_optimizer


def make() -> MeBT:
    torch.manual_seed(0)
    config = MeBTConfig(
        layers=("encode", "process", "decode"),
        **{"width": 12, "num_heads": 2, "num_latents": 5, "codebook_size": 11, "grid": (2, 3, 4)},
    )
    return MeBT(config)


def gradients(model: MeBT, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    order = torch.randperm(24, generator=generator)[None]
    tokens = torch.randint(11, (1, 24), generator=generator)
    model.zero_grad()
    summed, _ = model(tokens[:, :8], order[:, :8], order[:, 8:], tokens[:, 8:])
    summed.backward()


def steps(model: MeBT, *optimizers: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        gradients(model, number)
        for optimizer in optimizers:
            optimizer.step()


def muon_of(model: MeBT) -> torch.optim.Optimizer:
    return make_optimizer(model, learning_rate=1e-2, weight_decay=0.1, kind="muon")


def assert_alike(first: MeBT, second: MeBT) -> None:
    """To the rounding of directions, which are computed in bfloat16."""
    theirs, start = second.state_dict(), make().state_dict()
    for name, tensor in first.state_dict().items():
        if not name.endswith("key.bias"):  # Without effect, so AdamW follows rounding there.
            moved = (theirs[name] - start[name]).norm()
            assert (tensor - theirs[name]).norm() < 0.15 * moved, name


def test_muon_steps_the_matrices_of_layers_and_adamw_the_rest() -> None:
    ours, theirs = make(), make()
    steps(ours, muon_of(ours), numbers=range(3))
    named = dict(theirs.named_parameters())
    matrices = [n for n, p in named.items() if n.startswith("blocks") and p.ndim == 2]
    assert len(matrices) == 3 * 6
    values = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon([named[n] for n in matrices], lr=MUON_RATE * 1e-2, **values)
    rest = [p for n, p in named.items() if n not in (*matrices, "head.weight")]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": [theirs.head.weight]}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.1, fused=True)
    steps(theirs, muon, adamw, numbers=range(3))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 6), (1, 5, 20)])
def test_steps_are_orthogonal_matrices(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_a_step_is_what_the_papers_say() -> None:
    """Of gradients that are far from singular: else rounding to bfloat16 decides directions."""
    model = make()
    optimizer = muon_of(model)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            u, values, v = torch.linalg.svd(parameter.grad, full_matrices=False)
            parameter.grad = u * (1 + 0.5 * values / values.max()) @ v
    optimizer.step()
    matrices = [n for n in before if n.startswith("blocks") and before[n].ndim == 2]
    assert len(matrices) == 3 * 6
    for name, parameter in model.named_parameters():
        if name not in matrices:
            continue
        assert parameter.grad is not None
        u, values, v = torch.linalg.svd(parameter.grad.double(), full_matrices=False)
        values = values / values.norm()  # The momentum after one step is in the same direction.
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        rate = MUON_RATE * 1e-2
        size = rate * 0.2 * max(parameter.shape) ** 0.5
        step = -rate * 0.1 * before[name] - size * (u * values @ v)
        away = parameter.detach().double() - before[name] - step
        assert float(away.norm() / step.norm()) < 0.02, name


def test_matrices_step_alike_together_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = make(), make()
    steps(together, muon_of(together), numbers=range(2))
    monkeypatch.setattr(optim, "ELEMENTS", 1)
    steps(alone, muon_of(alone), numbers=range(2))
    assert_alike(together, alone)


def test_a_stop_changes_no_bit() -> None:
    whole, halves = make(), make()
    steps(whole, muon_of(whole), numbers=range(4))
    first, second = muon_of(halves), muon_of(halves)
    steps(halves, first, numbers=range(2))
    restore_optimizer(second, optimizer_tensors(first))
    steps(halves, second, numbers=range(2, 4))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name]), name
