#!/usr/bin/env bash
# numcodecs 0.16.6: `Zstd().decode(data, out)` of data that holds fewer bytes than `out` is said to be decoded into it, so one
# expects an error, or a result of the length that was decoded. It returns the whole of `out`, whose end is what it was before:
# a short chunk reads as a whole one with old memory behind it. LZ4, Blosc and GZip behave alike. Of more bytes than fit they
# raise (ValueError), and without `out` the result has the length that was decoded.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q numcodecs==0.16.6 >pip.log 2>&1
cat > try.py <<'P'
import numpy as np
from numcodecs import LZ4, Blosc, GZip
from numcodecs.zstd import Zstd

found = {}
for codec in (Zstd(), LZ4(), Blosc(), GZip()):
    name, data = type(codec).__name__, codec.encode(np.arange(10, dtype=np.uint8))
    assert len(bytes(codec.decode(data))) == 10
    for size in (20, 5):
        out = np.full(size, 7, np.uint8)
        try:
            got = np.frombuffer(bytes(codec.decode(data, out)), np.uint8)
            found[name, size] = (len(got), set(got[10:].tolist()))
        except Exception as error:
            found[name, size] = type(error).__name__
for key, value in found.items():
    print(*key, value)
for name in ("Zstd", "LZ4", "Blosc", "GZip"):
    assert (found[name, 20], found[name, 5]) == ((20, {7}), "ValueError"), found
P
env/bin/python try.py
