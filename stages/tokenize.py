"""frames -> a token store, with the frozen tokenizer."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from pipeline.checkpoint import user_errors
from pipeline.comparison import ReconstructionErrors
from pipeline.config import load_section
from pipeline.errors import ConfigError
from pipeline.files import keep_apart, lock
from pipeline.frames import Rejected, scan_frames, source_fingerprint
from pipeline.metrics import CodebookUse, codebook_use, token_counts
from pipeline.progress import progress
from pipeline.token_store import StoreInfo, StoreWriter, TokenStore, create_store
from pipeline.video import to_bytes, to_model
from pipeline.windows import TokenizeConfig, WindowReader, plan_windows
from stages.options import (
    FILE,
    FOLDER,
    OUT,
    Launch,
    fabric_options,
    overwrite_option,
    params_options,
)
from tokenizer import VQGAN, identity, load_tokenizer

CHECKED_WINDOWS = 32
"""Windows that are decoded again at the end, for the PSNR."""


@dataclass(frozen=True)
class Tokenized:
    """What `tokenize` did and how well."""

    counts: dict[str, int]
    encoded: int
    """Windows encoded by this process in this call."""
    rejected: list[Rejected]
    use: CodebookUse
    psnr: float


class Encoder:
    """Reads the windows of a plan and turns them into tokens."""

    def __init__(self, model: VQGAN, reader: WindowReader, store: TokenStore, batch_size: int):
        self.model, self.reader, self.batch_size = model, reader, batch_size
        self.plans = {
            split: (
                store.plan(split)["video"].to_pylist(),
                store.plan(split)["first_frame"].to_numpy(),
            )
            for split in store.splits
        }

    def pixels(self, split: str, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the windows of these rows as bytes [B, T, H, W, 3]."""
        videos, first = self.plans[split]
        return np.stack([self.reader.read(split, videos[row], int(first[row])) for row in rows])

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Returns tokens [B, t, h, w]."""
        device = next(self.model.parameters()).device
        return self.model.encode(to_model(pixels).to(device)).cpu().numpy()

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Returns pictures [B, T, H, W, 3]."""
        device = next(self.model.parameters()).device
        return to_bytes(self.model.decode(torch.from_numpy(tokens).to(device)))

    def shard(
        self,
        split: str,
        rows: range,
        *,
        pool: ThreadPoolExecutor,
        advance: Callable[[int], None],
    ) -> NDArray[np.int64]:
        """Encodes these rows; the next batch is read while one is encoded."""
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        parts = []
        ahead = pool.submit(self.pixels, split, batches[0])
        for after in [*batches[1:], None]:
            pixels = ahead.result()
            if after is not None:
                ahead = pool.submit(self.pixels, split, after)
            parts.append(self.encode(pixels))
            advance(len(pixels))
        return np.concatenate(parts)


def tokenize(
    frames: Path,
    tokenizer: Path,
    out: Path,
    config: TokenizeConfig,
    *,
    fabric: Fabric,
    overwrite: bool = False,
) -> Tokenized:
    """Encodes every window of every video once; goes on where an earlier call was cut off.

    Process r of R encodes each R-th of the shards that are missing. Raises PipelineError if the
    frames cannot be read, the tokenizer does not fit them, or `out` holds something else.
    """
    with user_errors():
        model = load_tokenizer(tokenizer, str(fabric.device))
    try:
        grid = model.config.grid(config.frames, config.size, config.size)
    except ValueError as error:
        raise ConfigError(f"section tokenize does not fit {tokenizer}: {error}") from None
    found = scan_frames(frames)
    plan = plan_windows(found.videos, config)
    splits = [split for split in ("train", "test") if plan.num_windows(split)]
    info = StoreInfo(
        tokenizer=identity(model),
        codebook_size=model.config.codebook_size,
        grid=grid,
        source=source_fingerprint(found.videos, frames),
        counts={split: plan.num_windows(split) for split in splits},
        shard_windows=config.shard_windows,
        chunk_windows=config.chunk_windows,
        frames=config.frames,
        stride=config.stride,
        hop=config.hop,
        size=config.size,
    )
    with lock(out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            create_store(out, info, plan.table, overwrite=overwrite).unfinished()
        fabric.barrier()
        writer = StoreWriter(out)
        encoder = Encoder(
            model, WindowReader(found.videos, config), writer.store, config.batch_size
        )
        encoded = _encode_missing(writer, encoder, fabric)
        fabric.barrier()
    store = TokenStore(out)
    counts = np.zeros(info.codebook_size, dtype=np.int64)
    for split, shard in info.shards():
        counts += token_counts(store.read_shard(split, shard), info.codebook_size)
    return Tokenized(
        counts=info.counts,
        encoded=encoded,
        rejected=found.rejected + plan.rejected,
        use=codebook_use(counts),
        psnr=_check_pictures(store, encoder),
    )


def _encode_missing(writer: StoreWriter, encoder: Encoder, fabric: Fabric) -> int:
    """Encodes this process's share of the missing shards; returns the number of windows."""
    missing = set(writer.store.missing())
    # By place among all shards, not among the missing ones: those grow fewer while others write.
    mine = [
        shard
        for index, shard in enumerate(writer.info.shards())
        if index % fabric.world_size == fabric.global_rank and shard in missing
    ]
    rows = [range(*writer.info.shard_rows(*shard)) for shard in mine]
    total = sum(map(len, rows))
    with (
        ThreadPoolExecutor(1) as pool,
        progress("tokenize", total, "window", shown=fabric.is_global_zero) as advance,
    ):
        for (split, shard), chosen in zip(mine, rows, strict=True):
            tokens = encoder.shard(split, chosen, pool=pool, advance=advance)
            writer.write_shard(split, shard, tokens)
    return total


def _check_pictures(store: TokenStore, encoder: Encoder) -> float:
    """Returns the PSNR of windows spread over the held-out split, or of train without one."""
    split = store.splits[-1]
    errors = ReconstructionErrors()
    count = min(CHECKED_WINDOWS, store.num_windows(split))
    for row in np.linspace(0, store.num_windows(split) - 1, count).round().astype(int):
        (decoded,) = encoder.decode(store.read(split, row, row + 1))
        errors.add(encoder.pixels(split, [row])[0], decoded)
    return errors.summary()["psnr"]


@click.command("tokenize")
@click.option("--frames", type=FOLDER, required=True, help="Frame folder to encode.")
@click.option("--tokenizer", type=FILE, required=True, help="Frozen tokenizer, .safetensors.")
@click.option("--out", type=OUT, required=True, help="Token store to make or to go on with.")
@params_options
@fabric_options
@overwrite_option
def command(
    frames: Path,
    tokenizer: Path,
    out: Path,
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    overwrite: bool,
) -> None:
    """Encode every window of every video, once.

    Makes a token store that any number of experiments may read. Stopped at any moment, the same
    command goes on with the shards that are missing. Values: section `tokenize` of the params file.

    \b
    Example:
      mebt tokenize --frames frames --tokenizer models/fish-64.safetensors --out tokens
    """
    keep_apart(out, frames, tokenizer, params)
    config = load_section(params, "tokenize", TokenizeConfig, overrides)
    fabric = launch()
    made = tokenize(frames, tokenizer, out, config, fabric=fabric, overwrite=overwrite)
    if not fabric.is_global_zero:
        return
    for rejected in made.rejected[:5]:
        click.echo(f"rejected {rejected.name}: {rejected.reason}")
    if len(made.rejected) > 5:
        click.echo(f"rejected {len(made.rejected) - 5} more")
    use = made.use
    click.echo(
        f"codebook: {use.share:.1%} used, {use.dead} dead, perplexity {use.perplexity:.1f}, "
        f"{use.bits:.2f} bits per token; reconstruction PSNR {made.psnr:.1f} dB"
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in made.counts.items())
    done = f"encoded {made.encoded:,} now" if made.encoded else "nothing to do"
    click.echo(f"{out}: {counts} windows; {done}")
