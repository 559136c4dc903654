#!/usr/bin/env bash
# dvclive 3.49.1: a metric's name may have slashes, as `train/loss` has, and `metrics.json` nests by them. A number whose name
# begins with the name of another, such as the loss of some samples, `loss/mask_10`, beside the loss of all, `loss`, cannot stand
# there: logged behind it, `log_metric` raises AttributeError ('float' object has no attribute 'copy'), from inside of funcy; logged
# before it, nothing is said, and metrics.json, which `dvc metrics diff` compares, lacks it. Its own table is written either way.
# TensorBoard, Weights & Biases and Trackio take such names. Names without slashes, or with dots, are kept apart.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q dvclive==3.49.1 >pip.log 2>&1
cat > names.py <<'P'
import json
from pathlib import Path

from dvclive import Live

def log(folder, *names):
    """Logs 1.0 by each of the names; returns what metrics.json and the tables hold, and what was raised."""
    live, raised = Live(dir=folder, save_dvc_exp=False, dvcyaml=None, report=None), None
    for name in names:
        try:
            live.log_metric(name, 1.0)
        except AttributeError as error:
            raised = f"AttributeError: {error}"
    live.end()
    tables = sorted(str(x.relative_to(Path(folder) / "plots/metrics")) for x in Path(folder).rglob("*.tsv"))
    return json.loads((Path(folder) / "metrics.json").read_text()), tables, raised

both = ["loss.tsv", "loss/mask_10.tsv"]
for folder, names, raises in (("a", ("loss", "loss/mask_10"), True), ("b", ("loss/mask_10", "loss"), False)):
    summary, tables, raised = log(folder, *names)
    print(f"{names}: metrics.json {summary}, tables {tables}, raised {raised}")
    assert summary["loss"] == 1.0 and "mask_10" not in json.dumps(summary) and tables == both
    assert (raised == "AttributeError: 'float' object has no attribute 'copy'") == raises
summary, tables, raised = log("c", "loss", "loss_mask_10", "loss.mask_10")
assert {"loss", "loss_mask_10", "loss.mask_10"} <= summary.keys() and len(tables) == 3 and raised is None
P
env/bin/python names.py 2>&1 | grep -v WARNING
