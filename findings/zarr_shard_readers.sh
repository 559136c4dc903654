#!/usr/bin/env bash
# Four readers of zarr v3 shards (sharding_indexed, zstd with checksums): zarr 3.1.6, tensorstore 0.1.86, the zarrs pipeline
# 0.2.3 inside zarr, and zarrita 0.7.5 (npm) read equal numbers, and all notice a flipped bit in a chunk. But of a shard file
# of no bytes, which a full disk may leave, zarr makes fill values without a word, as of a shard that was never written; the
# other three refuse it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q zarr==3.1.6 numcodecs==0.16.6 tensorstore==0.1.86 zarrs==0.2.3 >pip.log 2>&1
npm init -y >/dev/null 2>&1 && npm install --silent zarrita@0.7.5 >npm.log 2>&1
cat > write.py <<'P'
import numpy as np, pathlib, zarr
from zarr.codecs import ZstdCodec
array = zarr.create_array("a.zarr", shape=(40, 2, 3, 3), chunks=(4, 2, 3, 3), shards=(16, 2, 3, 3), dtype="uint16",
                          compressors=[ZstdCodec(level=1, checksum=True)], fill_value=65535)
values = np.random.default_rng(0).integers(0, 1000, array.shape).astype("uint16")
array[:] = values
np.save("values.npy", values)
pathlib.Path("sum.txt").write_text(str(int((values.ravel().astype("int64") * np.arange(1, values.size + 1)).sum())))
P
cat > read.py <<'P'
import sys, numpy as np
if sys.argv[1] == "tensorstore":
    import tensorstore
    got = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": "a.zarr/"}}).result().read().result()
else:
    import zarr
    if sys.argv[1] == "zarrs":
        import zarrs  # noqa: F401
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    got = zarr.open_array("a.zarr", mode="r")[:]
values = np.load("values.npy")
print("equal" if np.array_equal(got, values) else "fill" if (np.asarray(got)[:16] == 65535).all() else "other")
P
cat > read.mjs <<'P'
import * as zarr from "zarrita"; import { FileSystemStore } from "@zarrita/storage"; import fs from "node:fs";
const array = await zarr.open(zarr.root(new FileSystemStore(process.cwd() + "/a.zarr")), { kind: "array" });
const { data } = await zarr.get(array);
let sum = 0n; data.forEach((value, i) => { sum += BigInt(value) * BigInt(i + 1); });
console.log(String(sum) === fs.readFileSync("sum.txt", "utf8") ? "equal" : data[0] === 65535 ? "fill" : "other");
P
row() { for r in zarr tensorstore zarrs; do env/bin/python read.py $r 2>/dev/null || echo refused; done
        node read.mjs 2>/dev/null || echo refused; }
env/bin/python write.py
whole=$(row | xargs); echo "whole shards: $whole"
cp a.zarr/c/0/0/0/0 kept
env/bin/python -c "d=bytearray(open('kept','rb').read()); d[40]^=1; open('a.zarr/c/0/0/0/0','wb').write(d)"
flipped=$(row | xargs); echo "a flipped bit: $flipped"
: > a.zarr/c/0/0/0/0
empty=$(row | xargs); echo "an empty shard: $empty   (zarr, tensorstore, zarrs, zarrita)"
test "$whole" = "equal equal equal equal"
test "$flipped" = "refused refused refused refused"
test "$empty" = "fill refused refused refused"
