#!/usr/bin/env bash
# torch 2.13.0: tensors on the device `meta` have shapes and no data, which is how one counts a model's operations or checks its
# shapes without its memory. A model that guards some of its arithmetic with `torch.autocast(x.device.type, enabled=False)`, the
# usual way to keep it in float32, cannot be run there: though it is to do nothing, the context raises RuntimeError, and so does
# `torch.is_autocast_enabled("meta")`. `torch.amp.is_autocast_available` tells beforehand.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q torch==2.13.0 numpy==2.4.6 >pip.log 2>&1
cat > meta.py <<'P'
import torch

def guarded(x):
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ x.float().T

assert guarded(torch.ones(3, 2)).shape == (3, 3)
for name, call in {
    "torch.autocast(..., enabled=False)": lambda: guarded(torch.ones(3, 2, device="meta")),
    "torch.is_autocast_enabled": lambda: torch.is_autocast_enabled("meta"),
}.items():
    try:
        call()
    except RuntimeError as error:
        print(f"torch {torch.__version__}, meta: {name} raises: {str(error).splitlines()[0][:110]}")
    else:
        raise SystemExit(f"{name} no longer raises on the device meta")
assert not torch.amp.is_autocast_available("meta") and torch.amp.is_autocast_available("cpu")
P
env/bin/python meta.py
