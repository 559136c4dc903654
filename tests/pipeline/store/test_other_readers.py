"""What others read of our arrays: token stores and exact frames, by three more readers of zarr."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.store.layout import StoreInfo, numbered_plan
from pipeline.store.writer import create_store
from pipeline.video.decoded import DecodeConfig, Outputs

pytestmark = pytest.mark.slow

TENSORSTORE = """
import sys, numpy, tensorstore
place = {"driver": "file", "path": sys.argv[1] + "/"}
array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result().read().result()
"""
ZARRS = """
import sys, numpy, zarr, zarrs
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
array = zarr.open_array(sys.argv[1], mode="r")[:]
"""
ZARRITA = """
import * as zarr from "zarrita"; import { FileSystemStore } from "@zarrita/storage";
import fs from "node:fs";
const root = zarr.root(new FileSystemStore(process.argv[2]));
const { data, shape } = await zarr.get(await zarr.open(root, { kind: "array" }));
fs.writeFileSync(process.argv[3], Buffer.from(data.buffer, data.byteOffset, data.byteLength));
console.log(JSON.stringify(shape));
"""


def read_by_python(script: str, array: Path, like: NDArray) -> NDArray:
    out = array.parent / "read.npy"
    script += "numpy.save(sys.argv[2], array)"
    subprocess.run([sys.executable, "-c", script, str(array), str(out)], check=True, timeout=120)
    read: NDArray = np.load(out)
    assert read.dtype == like.dtype
    return read


@pytest.fixture(scope="module")
def zarrita(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which zarrita comes by")
    folder = tmp_path_factory.mktemp("zarrita")
    install = ["npm", "install", "--silent", "--prefix", str(folder), "zarrita@0.7.5"]
    subprocess.run(install, check=True, timeout=240)
    (folder / "read.mjs").write_text(ZARRITA)
    return folder / "read.mjs"


def read_by_zarrita(script: Path, array: Path, like: NDArray) -> NDArray:
    out = array.parent / "read.bin"
    done = subprocess.run(
        ["node", str(script), str(array), str(out)], check=True, capture_output=True, timeout=120
    )
    return np.frombuffer(out.read_bytes(), like.dtype).reshape(json.loads(done.stdout))


def arrays(root: Path) -> list[tuple[Path, NDArray]]:
    """Writes tokens of both types and exact frames, as the stages do, into `root`."""
    rng, written = np.random.default_rng(0), []
    for codes in (1000, 70_000):
        tokens = rng.integers(0, codes, (11, 2, 3, 3))
        info = StoreInfo(
            tokenizer="t",
            codebook_size=codes,
            grid=(2, 3, 3),
            source="s",
            counts={"train": 11},
            shard_windows=4,
            chunk_windows=2,
        )
        writer = create_store(root / str(codes), info, numbered_plan(info.counts, "w", 4))
        for split, shard in info.shards():
            writer.write_shard(split, shard, tokens[slice(*info.shard_rows(split, shard))])
        written.append((root / str(codes) / "train.zarr", tokens.astype(info.dtype)))
    frames = rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    frames[1] = 0  # All black, which must not be a missing chunk to anybody.
    outputs = Outputs(root / "videos", "train", 3, 4, DecodeConfig())
    (root / "videos").mkdir()
    with outputs.writer(8.0, exact=True) as write:
        for row, video in enumerate(frames):
            write(row, video, is_last=True)
    return [*written, (root / "videos" / "frames.zarr", frames)]


def test_tensorstore_and_zarrs_read_what_we_write(tmp_path: Path) -> None:
    for array, expected in arrays(tmp_path):
        for script in (TENSORSTORE, ZARRS):
            np.testing.assert_array_equal(read_by_python(script, array, expected), expected)


def test_zarrita_reads_what_we_write(tmp_path: Path, zarrita: Path) -> None:
    for array, expected in arrays(tmp_path):
        np.testing.assert_array_equal(read_by_zarrita(zarrita, array, expected), expected)
