#!/usr/bin/env bash
# torch 2.13.0: `clip_grad_norm_(parameters, 1.0)` is thought to bring any finite gradient to a norm of 1. Where one entry of float32
# is above 1.8e19, its square overflows, the norm is inf though every entry is finite, and all gradients are multiplied by
# 1 / inf: they become 0, those of other layers too, and the step is lost without an error. `error_if_nonfinite=True` raises;
# `foreach` changes nothing, and in float64 it is clipped as thought. Such gradients are not made up: where a batch is of one value,
# as black frames are, each batch norm divides by sqrt(0 + eps), and sixteen layers of norm, SiLU and convolution have a gradient of
# 2e22, of a random batch one of 0.01. Noise of a third of a grey level (0.0012 for pixels of 0 … 1) is enough to prevent it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q torch==2.13.0 numpy==2.4.6 >pip.log 2>&1
cat > clip.py <<'P'
import torch
from torch import nn

def clipped(large, dtype=torch.float32, **options):
    """Returns the norm that was found, and the gradients after clipping to a norm of 1."""
    parameters = [nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2)]
    for parameter, gradient in zip(parameters, (large, 0.3)):
        parameter.grad = torch.full_like(parameter, gradient)
    norm = nn.utils.clip_grad_norm_(parameters, 1.0, **options)
    return float(norm), [float(x.grad) for x in parameters]

for large in (1e3, 1e19, 2e19, 1e30):
    for foreach in (False, True):
        norm, left = clipped(large, foreach=foreach)
        print(f"gradients {large:.0e} and 0.3, foreach {foreach}: norm {norm:.1e}, clipped to {left[0]:.2f} and {left[1]:.1e}")
        assert (norm == float("inf")) == (left == [0.0, 0.0]) == (large > 1.8e19)
assert abs(clipped(1e30, torch.float64)[1][0] - 1) < 1e-9
try:
    clipped(1e30, error_if_nonfinite=True)
except RuntimeError as error:
    print("error_if_nonfinite:", str(error).split(",")[0])
else:
    raise AssertionError

def largest(deviation, layers=16):
    """Returns the largest gradient of a loss of two clips in one colour, with noise of `deviation`."""
    torch.manual_seed(0)
    parts = [nn.Conv3d(3, 16, 3, padding="same", padding_mode="replicate")]
    for _ in range(layers):
        parts += [nn.BatchNorm3d(16), nn.SiLU(), nn.Conv3d(16, 16, 3, padding="same", padding_mode="replicate")]
    model = nn.Sequential(*parts)
    clips = torch.full((2, 3, 8, 16, 16), 0.9) + deviation * torch.randn(2, 3, 8, 16, 16)
    goal = torch.randn(2, 16, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    (model(clips) - goal).abs().mean().backward()
    return max(float(p.grad.abs().max()) for p in model.parameters())

flat, usual, noisy = largest(0.0), largest(0.3), largest(0.0012)
print(f"largest gradient: of a flat batch {flat:.1e}, of a random one {usual:.2f}, of a flat one with a little noise {noisy:.2f}")
assert flat > 1e12 and usual < 1 and noisy < 1
P
env/bin/python clip.py
