"""Two readers of shards side by side, zarr and ours by numcodecs: `python -m benchmarks.readers`.

Stores are dealt out for an epoch by either in turn, on one core; then single windows are read from
a bucket of a local stand-in, and what is sent for them is counted. `--page docs/benchmarks.md` puts
the table into that page. Minutes on one core, 0.5 GB of disk.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from zarr.buffer import default_buffer_prototype

from benchmarks.batches import Draw, draw_evenly, fastest, make_store
from benchmarks.bucket import stand_in, upload
from benchmarks.pages import replace_between
from pipeline.store import reader
from pipeline.store.batches import Batches
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore, read_rows
from pipeline.store.shards import Tokens, array_in_memory

BEGIN, END = "<!-- made by python -m benchmarks.readers -->\n", "<!-- end of readers -->\n"
FEW = 100
"""Windows that are read from a bucket, each alone."""
BATCH = 64
STAYS = 0.5
"""Share of tokens that are those of the latent frame before, where pictures change little."""


def draw_as_of_video(
    generator: np.random.Generator, codebook_size: int, shape: tuple[int, int, int, int]
) -> NDArray[np.int64]:
    """Draws tokens [n t h w] of which few codes are frequent (Zipf's law), and many stay in time.

    The code of rank r is as likely as 1 / r.
    """
    likely = np.cumsum(1 / np.arange(1, codebook_size + 1))
    tokens = np.searchsorted(likely, generator.random(shape) * likely[-1])
    # Frequent codes have any number.
    tokens = np.random.default_rng(codebook_size).permutation(codebook_size)[tokens]
    for now in range(1, shape[1]):
        stays = generator.random((shape[0], *shape[2:])) < STAYS
        tokens[:, now] = np.where(stays, tokens[:, now - 1], tokens[:, now])
    return tokens


@dataclass(frozen=True)
class Case:
    """A store to read."""

    name: str
    windows: int
    grid: tuple[int, int, int]
    codebook_size: int
    draw: Draw


EVENLY, AS_OF_VIDEO = "nothing to compress", "as of video"
CASES = (
    Case(EVENLY, 20_000, (4, 16, 16), 16_384, draw_evenly),
    Case(AS_OF_VIDEO, 20_000, (4, 16, 16), 16_384, draw_as_of_video),
    Case(AS_OF_VIDEO, 1_000_000, (4, 4, 4), 1_024, draw_as_of_video),
)


def decode_by_zarr(info: StoreInfo, split: str, shard: int, data: bytes) -> Tokens:
    """Returns the tokens of a shard as any other program reads them: through an array of zarr's."""
    files, array = array_in_memory(info, split)
    files[f"c/{shard}/0/0/0"] = default_buffer_prototype().buffer.from_bytes(data)
    return np.asarray(array[slice(*info.shard_rows(split, shard))])


@contextmanager
def read_by_zarr() -> Iterator[None]:
    """Lets stores be read so."""
    own = reader.decode_shard
    reader.decode_shard = decode_by_zarr
    try:
        yield
    finally:
        reader.decode_shard = own


def windows_per_second(store: TokenStore) -> dict[str, float]:
    """Returns how many windows either reader deals out in the first epoch."""
    steps = store.num_windows("train") // BATCH

    def epoch() -> None:
        batches = Batches(store, "train", batch_size=BATCH, seed=0)
        for step in range(steps):
            batches.tokens(step)

    def epoch_by_zarr() -> None:
        with read_by_zarr():
            epoch()

    seconds = fastest({"zarr": epoch_by_zarr, "numcodecs": epoch})
    return {name: steps * BATCH / taken for name, taken in seconds.items()}


def shard_bytes(store: TokenStore) -> int:
    """Returns the bytes of all shards."""
    return sum(store.part(*shard)["bytes"] for shard in store.info.shards())


def sent_share(folder: Path, few: int) -> float:
    """Returns what is sent to open a store in a bucket and to read so many of its windows.

    As a share of its shards. Windows are drawn at random, and each is read alone.
    """
    with stand_in() as (url, sent):
        url = upload(folder, f"{url}/tokens")
        sent.bytes = 0
        store = TokenStore(url)
        for row in np.random.default_rng(0).integers(store.num_windows("train"), size=few):
            read_rows(store, "train", [int(row)])
        return sent.bytes / shard_bytes(TokenStore(folder))


def measure(case: Case, folder: Path) -> str:
    """Writes and reads a store; returns its row of the table, speeds to three digits."""
    store = make_store(
        folder / "tokens", case.windows, case.grid, case.codebook_size, draw=case.draw
    )
    tokens = int(np.prod(case.grid))
    size = shard_bytes(store) / case.windows / tokens
    speeds = windows_per_second(store)
    zarr, ours = (float(f"{speeds[name]:.3g}") for name in ("zarr", "numcodecs"))
    share = sent_share(folder / "tokens", FEW)
    return (
        f"| {case.windows:,} x {tokens:,} of {case.codebook_size:,}, {case.name} | {size:.2f} "
        f"| {zarr:,.0f} | {ours:,.0f} | {ours / zarr:.1f} | {share:.2%} |"
    )


def table(cases: tuple[Case, ...]) -> str:
    """Returns the table in Markdown: a row for each store."""
    lines = [
        "| windows x tokens of so many codes | bytes a token | zarr, windows/s | numcodecs "
        f"| times as fast | sent for {FEW} windows |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(case, Path(folder)))
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="Page to put the table into.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = table(CASES)
    print(made)
    if options.page:
        replace_between(options.page, BEGIN, END, f"\n{made}\n\n")


if __name__ == "__main__":
    main()
