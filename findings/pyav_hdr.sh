#!/usr/bin/env bash
# PyAV 18.1.0 (its bundled FFmpeg 8) has neither `zscale` nor `libplacebo`, so HDR is thought to be out of its reach: as it
# comes, `to_ndarray("rgb24")` shows PQ video as pale as it is stored (paper white, 203 nits, at 148 of 255). But its plain
# `scale` filter maps transfer functions and primaries when it is asked to, tone mapping included: out_transfer=bt709 with
# intent=relative_colorimetric puts 203 nits at white, intent=perceptual leaves room for highlights. The first frame takes
# seconds, whatever its size, and the others next to nothing: keep such a graph for all videos of one kind.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q av==18.1.0 numpy==2.4.6 >pip.log 2>&1
cat > map.py <<'P'
import time, av, numpy as np

def pq(nits):  # SMPTE ST 2084
    p = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * p) / (1 + 18.6875 * p)) ** 78.84375

def frame(nits, pts):
    made = av.VideoFrame(64, 64, "yuv420p10le")
    for plane, level in zip(made.planes, (round(64 + 876 * pq(nits)), 512, 512)):
        plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
    made.color_trc, made.color_primaries, made.colorspace, made.color_range, made.pts = 16, 9, 9, 1, pts
    return made

def shown(intent):
    graph = av.filter.Graph()
    chain = [
        graph.add("buffer", "video_size=64x64:pix_fmt=yuv420p10le:time_base=1/25:colorspace=9:range=1"),
        graph.add("scale", f"out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:intent={intent}"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*chain).configure()
    levels, seconds = [], []
    for pts, nits in enumerate((10, 100, 203, 1000)):
        start = time.perf_counter()
        graph.push(frame(nits, pts))
        levels.append(int(graph.vpull().to_ndarray(format="rgb24")[32, 32, 1]))
        seconds.append(time.perf_counter() - start)
    return levels, seconds

print("av", av.__version__, {name: name in av.filter.filters_available for name in ("zscale", "libplacebo", "scale")})
stored = [int(frame(nits, 0).to_ndarray(format="rgb24")[32, 32, 1]) for nits in (10, 100, 203, 1000)]
print("10, 100, 203, 1000 nits as they come      :", stored)
found = {}
for intent in ("relative_colorimetric", "perceptual"):
    found[intent], seconds = shown(intent)
    print(f"with intent={intent:22}:", found[intent], f"first frame {seconds[0]:.1f} s, others {max(seconds[1:]):.4f} s")
flat, mapped = found["relative_colorimetric"], found["perceptual"]
assert "zscale" not in av.filter.filters_available
assert 140 < stored[2] < 156 and stored[3] < 200
assert flat[2] > 248 and flat[3] == 255
assert 140 < mapped[2] < 180 < mapped[3] < 240
assert seconds[0] > 20 * max(seconds[1:])
P
env/bin/python map.py
