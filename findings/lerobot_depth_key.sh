#!/usr/bin/env bash
# LeRobot 0.4.4 and 0.6.1 both write version v3.0 of its data sets and open each other's. That a video holds depth 0.4.4 says in
# `meta/info.json` as `video.is_depth_map`, which is false whatever is recorded unless the caller of `create` gives it, and then
# it is all that `info` holds; 0.6.1 says it as `is_depth_map`, and keeps depth in grey of 12 bits, by the logarithm. Who knows one
# key takes the other's depth for colour; 0.4.4 knows none, and makes three channels in 0..1 of 0.6.1's logarithms. 0.6.1 knows
# both, but takes the grey of 8 bits of a marked set of 0.4.4 for its own logarithms: 1, 2, 4 and 8 m come as 517, 1097, 2520 and
# 6758 mm, under a warning that depth is returned "AS IS", since the unit is unknown. A video of one channel that is not marked
# (its own recorder marks them), uint16 in millimetres, 0.6.1 stores as colour without a word: all white. Needs python3.12.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1
python3.12 -m venv base  # What both need of others for data sets; torch is large.
base/bin/pip install -q torch==2.7.1 torchvision==0.22.1 av==15.1.0 numpy==2.2.6 datasets==4.8.5 huggingface-hub==0.35.3 \
  pandas==2.3.3 jsonlines==4.0.0 einops==0.8.1 deepdiff==8.6.1 gymnasium==1.2.3 accelerate==1.10.1 safetensors==0.6.2 \
  requests==2.32.5 packaging==25.0 pillow==12.0.0 >pip.log 2>&1
for version in 0.4.4 0.6.1; do
  python3.12 -m venv $version
  echo "$work/base/lib/python3.12/site-packages" >$version/lib/python3.12/site-packages/base.pth
  $version/bin/pip install -q --no-deps lerobot==$version >>pip.log 2>&1
done
0.4.4/bin/pip install -q draccus==0.10.0 >>pip.log 2>&1
0.6.1/bin/pip install -q draccus==0.11.6 huggingface-hub==1.9.0 >>pip.log 2>&1
cat > step.py <<'P'
import json, sys
from pathlib import Path
import lerobot, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

KEY, MILLIMETRES = "observation.images.depth", np.repeat(np.array([1000, 2000, 4000, 8000], np.uint16), 24)

def write(folder, mark):
    """Writes four distances, side by side: in 0.4.4, which takes 8 bits in three channels only, 255 stands for 10 m."""
    row = MILLIMETRES if lerobot.__version__ == "0.6.1" else np.rint(MILLIMETRES / 10_000 * 255).astype(np.uint8)
    shape = (64, 96, 1 if lerobot.__version__ == "0.6.1" else 3)
    feature = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
    if mark:
        feature["info"] = {mark: True}
    made = LeRobotDataset.create("a/b", 10, {KEY: feature}, root=folder)
    for _ in range(5):
        made.add_frame({KEY: np.broadcast_to(row[None, :, None], shape).copy(), "task": "look"})
    made.save_episode()
    made.finalize()

def read(folder, _):
    values = LeRobotDataset("a/b", root=folder, video_backend="pyav")[2][KEY]
    info = json.loads(Path(folder, "meta/info.json").read_text())
    return info["codebase_version"], info["features"][KEY]["info"], len(values), values[0, 32, 12::24].tolist()

print(json.dumps({"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])))
P
cat > check.py <<'P'
import json, subprocess

def step(version, *words):
    done = subprocess.run([f"{version}/bin/python", "step.py", *words], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr

OLD, NEW, warned = "video.is_depth_map", "is_depth_map", {}
found = {}
for by, mark in (("0.4.4", ""), ("0.4.4", OLD), ("0.6.1", ""), ("0.6.1", NEW)):
    warned[by, mark] = step(by, "write", f"sets/{by}{mark}", mark)[1]
    for reader in ("0.4.4", "0.6.1"):
        (version, info, channels, values), warned[by, mark, reader] = step(reader, "read", f"sets/{by}{mark}", "")
        assert version == "v3.0"
        found[by, mark, reader] = info, channels, values
        says = {key: info[key] for key in (OLD, NEW, "video.pix_fmt") if key in info}
        print(f"{by}, marked {mark or 'by nobody'}: {says}; {reader} reads {channels} channels, {[round(x, 3) for x in values]}")

def near(values, wanted, tolerance):
    return all(abs(value - right) <= tolerance * right for value, right in zip(values, wanted, strict=True))

levels = [0.1, 0.2, 0.4, 0.8]
for reader in ("0.4.4", "0.6.1"):
    info, channels, values = found["0.4.4", "", reader]
    assert info[OLD] is False and NEW not in info and channels == 3 and near(values, levels, 0.1)
    info, channels, values = found["0.6.1", "", reader]
    assert info[NEW] is False and OLD not in info and channels == 3 and min(values) > 0.98
said = [line for line in warned["0.6.1", ""].splitlines() if line.startswith(("WARNING", "ERROR")) and "torchcodec" not in line]
assert not said, said
info, channels, values = found["0.4.4", OLD, "0.4.4"]
assert info == {OLD: True} and channels == 3 and near(values, levels, 0.1)
_, channels, values = found["0.4.4", OLD, "0.6.1"]
assert channels == 1 and near(values, [517, 1097, 2520, 6758], 0.05) and "AS IS" in warned["0.4.4", OLD, "0.6.1"]
info, channels, values = found["0.6.1", NEW, "0.6.1"]
assert info[NEW] is True and OLD not in info and info["video.pix_fmt"] == "gray12le"
assert channels == 1 and near(values, [1000, 2000, 4000, 8000], 0.01)
_, channels, values = found["0.6.1", NEW, "0.4.4"]
assert channels == 3 and 4 < values[3] / values[0] < 6, "0.4.4 knows depth of 0.6.1 now"
P
base/bin/python check.py
