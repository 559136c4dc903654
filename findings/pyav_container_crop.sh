#!/usr/bin/env bash
# PyAV 18.1.0 knows nothing of the rectangle that a container says to show (the `clap` box of .mp4 and .mov, PixelCrop of
# Matroska): frames come whole, `frame.side_data` and packets do not name it, while the program ffmpeg (since 7.1) and players
# cut it. The one place that tells is FFmpeg's description of the file, `container.dumps_format()`, and that is empty unless
# PyAV's logging is at INFO or more.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q av==18.1.0 numpy==2.4.6 >pip.log 2>&1
cat > crop.py <<'P'
import struct, av, numpy as np

with av.open("plain.mp4", "w") as out:
    stream = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
    for _ in range(4):
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), "rgb24")))
    out.mux(stream.encode())
data = bytearray(open("plain.mp4", "rb").read())
box = struct.pack(">I4s4IiIiI", 40, b"clap", 64, 1, 32, 1, 8, 1, -4, 1)  # 64x32 pixels, 8 right of and 4 above the middle.
start, stop = 0, len(data)
for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
    while data[start + 4 : start + 8] != name:
        start += struct.unpack_from(">I", data, start)[0]
    size = struct.unpack_from(">I", data, start)[0]
    struct.pack_into(">I", data, start, size + len(box))
    stop = start + size
    start += {b"stsd": 16, b"avc1": 86}.get(name, 8)
data[stop:stop] = box
open("clap.mp4", "wb").write(data)

with av.open("clap.mp4") as file:
    quiet = file.dumps_format()
    av.logging.set_level(av.logging.INFO)
    told = file.dumps_format()
    av.logging.set_level(None)
    packet = next(file.demux(video=0))
with av.open("clap.mp4") as file:
    frame = next(file.decode(video=0))
print("av", av.__version__)
print("frames come as", (frame.width, frame.height), "with", [data.type.name for data in frame.side_data], "packets with", list(packet.iter_sidedata()))
print("described by default:", repr(quiet))
print("described at INFO   :", [line.strip() for line in told.splitlines() if "rop" in line])
assert (frame.width, frame.height) == (96, 64)
assert not any("CROP" in data.type.name for data in frame.side_data)
assert quiet == "" and "Frame Cropping: 24/8/12/20" in told
P
env/bin/python crop.py
