"""Files made to harm: claims of gigabytes, names that lead outside, headers drawn at random."""

import functools
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import fingerprint
from pipeline.storage.files import to_json
from pipeline.store.layout import PART_SCHEMA, PLAN_SCHEMA
from tests.faults.arms import MemoryLimit
from tests.faults.trial import DataLostError, Trial, UnclearError, kind

ENOUGH = 3 << 30
"""Bytes of memory that suffice for any of these files."""
CLAIM = 10 * 10**9


def rewrite(file: Path, data: bytes) -> Path:
    """Replaces a file that may be linked to the undisturbed one."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)
    return file


def safetensors(header: dict[str, Any], *, length: int | None = None) -> bytes:
    """Makes a safetensors file without a single tensor's bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def header_of(file: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file."""
    data = file.read_bytes()
    return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


def length_of_header(file: Path) -> bytes:
    """Claims a header of gigabytes."""
    return safetensors(header_of(file), length=CLAIM)


def length_of_tensor(file: Path) -> bytes:
    """Claims a tensor of gigabytes, and no others."""
    about = header_of(file).get("__metadata__")
    big = {"dtype": "F32", "shape": [CLAIM // 4], "data_offsets": [0, CLAIM]}
    return safetensors({**({"__metadata__": about} if about else {}), "big": big})


def config_of_giant(file: Path) -> bytes:
    """Claims a config whose layers would take gigabytes, around the tensors that are there."""
    data, header = file.read_bytes(), header_of(file)
    rest = data[8 + int.from_bytes(data[:8], "little") :]
    about = json.loads(header["__metadata__"]["mebt"])
    config = {**json.loads(about["config"]), "width": 65536, "codebook_size": 1 << 30}
    del about["header"]  # Its hash; without one, it is a file of the first versions.
    about = json.dumps({**about, "config": json.dumps(config)})
    return safetensors({**header, "__metadata__": {"mebt": about}}) + rest


Forge = Callable[[Path], bytes]


def forged(trial: Trial, artefact: str, name: str, forge: Forge) -> tuple[Path, Path]:
    """Copies an artefact and forges one of its files; returns both."""
    copied = trial.copy(artefact)
    file = copied / name if name else copied
    return copied, rewrite(file, forge(file))


def tokenizer_claim(trial: Trial) -> None:
    """A tokenizer that claims too much."""
    forge = trial.draw.choice([length_of_header, length_of_tensor, config_of_giant])
    file, _ = forged(trial, "tokenizer.safetensors", "", forge)
    words = trial.with_input("tokenize", "--tokenizer", file, out=trial.folder / "out")
    must_be_refused(trial, words, file)


def model_claim(trial: Trial) -> None:
    """A model that claims too much."""
    forge = trial.draw.choice([length_of_header, length_of_tensor, config_of_giant])
    run, file = forged(trial, "run", "model.safetensors", forge)
    must_be_refused(trial, trial.with_input("sample", "--run", run, out=trial.folder / "out"), file)


def checkpoint_claim(trial: Trial) -> None:
    """A checkpoint that claims too much, with a SHA-256 that fits."""
    run = trial.copy("run")
    folder = run / "checkpoints" / (run / "checkpoints/last").read_text().strip()
    forge = trial.draw.choice([length_of_header, length_of_tensor])
    state = rewrite(folder / "state.safetensors", forge(folder / "state.safetensors"))
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
    meta["fingerprint"] = fingerprint({key: meta[key] for key in ("step", "sha256", "values")})
    rewrite(folder / "meta.json", to_json(meta))
    words = trial.world.words("train", "--set", "train.max_steps=12", out=run)
    must_be_refused(trial, words, folder)


def png_claim(trial: Trial) -> None:
    """A picture of a kilobyte that claims 3 gigapixels."""
    frames = trial.copy("frames")
    file = trial.draw.choice(sorted(frames.rglob("*.png")))
    side = trial.draw.choice([57_000, 13_000, 2**31 - 1])
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = [(b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    ]
    rewrite(file, b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    words = trial.with_input("tokenize", "--frames", frames, out=trial.folder / "out")
    must_be_refused(trial, words, file)


def npy_claim(trial: Trial) -> None:
    """An array of a kilobyte that claims gigabytes."""
    buffer = io.BytesIO()
    shape = trial.draw.choice([(CLAIM // 64, 2, 4, 4), (1 << 40, 1 << 20, 4, 4), (CLAIM, 1, 1, 1)])
    header = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    file = rewrite(trial.folder / "ids.npy", buffer.getvalue() + bytes(900))
    words = ["tokens", "import", file, "--codebook-size", "24", "--out", trial.folder / "out"]
    must_be_refused(trial, words, file)


def tar_claim(trial: Trial) -> None:
    """A tar whose member claims gigabytes."""
    frames = trial.folder / "frames"
    frames.mkdir()
    entry = tarfile.TarInfo(f"0001.{trial.draw.choice(['json', '00000.png'])}")
    entry.size = CLAIM
    file = rewrite(frames / "train-00000-000.tar", entry.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    words = trial.with_input("tokenize", "--frames", frames, out=trial.folder / "out")
    must_be_refused(trial, words, file)


def forge_store(root: Path, **claims: Any) -> None:
    """Rewrites a store.json with other values, and fingerprints that fit everywhere."""
    record = json.loads((root / "store.json").read_text())
    record["info"] |= claims
    record["fingerprint"] = fingerprint({key: record[key] for key in ("schema", "info", "plan")})
    rewrite(root / "store.json", json.dumps(record).encode())
    for part in (root / "manifest").glob("*.parquet"):
        row = pq.read_table(part).to_pylist()[0] | {"fingerprint": record["fingerprint"]}
        if row["split"] in record["info"]["counts"]:
            most = record["info"]["shard_windows"]
            row["rows"] = min(most, record["info"]["counts"][row["split"]])
        part.unlink()
        pq.write_table(pa.Table.from_pylist([row], PART_SCHEMA), part)


def store_claims(many: int) -> list[dict[str, Any]]:
    """Returns values of a store.json that take more memory than there is; `many` windows of it."""
    return [
        {"counts": {"train": many}},
        {"counts": {"train": many}, "shard_windows": many, "chunk_windows": many},
        {"grid": [2, 4096, 4096]},
        {"grid": [1, 4096, 4096]},
        {"grid": [1 << 28, 1, 1], "counts": {"train": 16, "test": 16}},
        {"shard_windows": 1 << 40, "chunk_windows": 1 << 40},
    ]


def store_claim(trial: Trial) -> None:
    """A store.json that claims more windows, or larger ones, than any machine holds."""
    store = trial.copy("tokens")
    claims = trial.draw.choice(store_claims(10 ** trial.draw.randint(9, 18)))
    forge_store(store, **claims)
    words = trial.draw.choice(
        [
            ["tokens", "info", store],
            ["tokens", "verify", store],
            trial.with_input("train", "--tokens", store, out=trial.folder / "out"),
        ]
    )
    must_be_refused(trial, words, store)


@functools.cache
def many_rows(schema: pa.Schema) -> bytes:
    """Makes a table of 33 million equal rows, which takes few bytes in Parquet."""
    count = 1 << 22
    columns = []
    for entry in schema:
        value = pa.scalar("a" if pa.types.is_string(entry.type) else 0, entry.type)
        columns.append(pa.repeat(value, count))
    table = pa.Table.from_arrays(columns, schema=schema)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(table)
    return buffer.getvalue()


def parquet_claim(trial: Trial) -> None:
    """A plan or manifest part of some kilobytes that holds millions of rows."""
    store = trial.copy("tokens")
    name, schema = trial.draw.choice(
        [("plan.parquet", PLAN_SCHEMA), ("manifest/train-00000.parquet", PART_SCHEMA)]
    )
    file = rewrite(store / name, many_rows(schema))
    must_be_refused(trial, ["tokens", "verify", store], store, said=file)


CLAIMS = (
    *(tokenizer_claim, model_claim, checkpoint_claim, png_claim),
    *(npy_claim, tar_claim, store_claim, parquet_claim),
)


def must_be_refused(trial: Trial, words: list[Any], *names: Path, said: Path | None = None) -> None:
    """Raises UnclearError if a command reads something forged, or not with bounded memory."""
    trial.faults += 1
    ended = trial.run(*words, arms=[MemoryLimit(ENOUGH)])
    if not trial.refusal(ended, *names):
        raise UnclearError(f"{ended.words}: accepted what was forged: {ended.said[-300:]}")
    if said and str(said) not in ended.said:
        raise UnclearError(f"{ended.words}: does not name {said}: {ended.said[-300:]}")


@kind("a claim of 10 GB in a small file")
def claim(trial: Trial) -> None:
    """Reads a small file that claims to be large."""
    trial.draw.choice(CLAIMS)(trial)


NAMES = ("../outside.png", "/outside.png", "a/../../outside.00000.png", "0001.00000.png/x")


@kind("tar members that lead outside")
def tar_members(trial: Trial) -> None:
    """Reads tars with members that no honest one has."""
    frames = trial.folder / "frames"
    frames.mkdir()
    file = frames / "train-00000-000.tar"
    picture = next((trial.world.root / "frames").rglob("*.png")).read_bytes()
    names = ["../v_0.png"] if trial.draw.random() < 0.3 else ["v/v_0.png"]
    about = json.dumps({"split": "train", "frames": names}).encode()
    with tarfile.open(file, "w") as tar:
        if names == ["v/v_0.png"]:
            bad = tarfile.TarInfo(trial.draw.choice(NAMES))
            kinds = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
            bad.type, bad.linkname = trial.draw.choice(kinds), "/etc/hostname"
            tar.addfile(bad)
        for name, data in (("0001.json", about), ("0001.00000.png", picture)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    before = {path for path in trial.folder.rglob("*")}
    words = trial.with_input("tokenize", "--frames", frames, out=trial.folder / "out")
    must_be_refused(trial, words, file)
    made = {path.name for path in set(trial.folder.rglob("*")) - before}
    if strange := {name for name in made if not name.startswith("said-")}:
        raise DataLostError(f"reading a tar made {min(strange)}")
