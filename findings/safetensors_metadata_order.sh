#!/usr/bin/env bash
# safetensors 0.8.0 sorts the tensors of a file, so that equal tensors are thought to make equal files, and without metadata they
# do. But several entries of `metadata` are written in an order drawn anew at each call, though Python keeps that of a dict: one
# process that saves the same tensors and the same eight entries 20 times makes 20 files of one length, no two the same (with
# PYTHONHASHSEED=0 too). So do tensors and entries that were loaded from one file and are saved again. Who names files by what is
# in them, as DVC and caches do, finds a new one each time. One entry, with all others in it as JSON, makes the same file.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
export PYTHONHASHSEED=0
python3 -m venv env && env/bin/pip install -q safetensors==0.8.0 numpy==2.4.6 >pip.log 2>&1
cat > order.py <<'P'
import json
import numpy as np, safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

TENSORS = {name: np.full((2, 3), number, np.float32) for number, name in enumerate("zyxa")}
ENTRIES = {name: name.upper() for name in ("format", "license", "author", "step", "config", "data", "commit", "date")}

def files(metadata):
    made = [save(TENSORS, metadata) for _ in range(20)]
    assert len({len(x) for x in made}) == 1
    return len(set(made))

def header(data):
    return list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))

found = {
    "no metadata": files(None),
    "one entry": files({"format": "np"}),
    "eight entries": files(ENTRIES),
    "eight in one, as JSON": files({"all": json.dumps(ENTRIES)}),
}
print("safetensors", safetensors.__version__, "of 20 files differ:", found)
save_file(TENSORS, "a", ENTRIES)
again = set()
for _ in range(20):
    with safe_open("a", "np") as file:
        assert file.metadata() == ENTRIES
        again.add(save(load_file("a"), file.metadata()))
print("loaded and saved again, of 20 differ:", len(again), "; tensors stand in the order", header(save(TENSORS)))
assert header(save(TENSORS)) == sorted(TENSORS)
assert found["no metadata"] == found["one entry"] == found["eight in one, as JSON"] == 1
assert found["eight entries"] > 10 and len(again) > 10
P
env/bin/python order.py
