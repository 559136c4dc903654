"""Look into token stores, check and mend them, bring tokens in, take tokens out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError, TokenStoreError, user_errors
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import Video, scan_frames
from pipeline.metrics import codebook_use, token_counts
from pipeline.progress import progress
from pipeline.storage.files import keep_apart, replacing
from pipeline.storage.places import Place, open_storage
from pipeline.store.layout import INFO, StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore, check_tokenizer
from pipeline.store.tars import export_tars, restore_tars
from pipeline.store.writer import create_store
from pipeline.windows.encode import encode_shards, encoder_of
from pipeline.windows.of_tokens import check_source
from pipeline.windows.plan import TokenizeConfig, plan_windows
from pipeline.windows.verify import refuse_damaged
from stages.options import (
    FILE,
    OUT,
    PLACE,
    PLACE_OUT,
    choose_split,
    device_option,
    overwrite_option,
    spare_cores,
    workers_option,
)
from tokenizer import VQGAN, identity, load_tokenizer

SHARD_WINDOWS = 4096
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
"""How an .npy begins; and an .npz, which is refused as an archive."""


@click.group("tokens")
def command() -> None:
    """Look into token stores, check and mend them, import and export.

    \b
    Example:
      mebt tokens info tokens
      mebt tokens import ids.npy --codebook-size 8192 --out tokens
    """


@command.command("info")
@click.argument("store", type=PLACE)
def info(store: Place) -> None:
    """Say what STORE holds and how its codebook is used.

    \b
    Example:
      mebt tokens info tokens
    """
    opened = TokenStore(store)
    found = opened.info
    t, h, w = found.grid
    click.echo(f"store        {store}")
    click.echo(f"fingerprint  {opened.fingerprint}")
    click.echo(f"tokenizer    {found.tokenizer or 'unknown: the tokens were imported'}")
    if found.frames:
        click.echo(
            f"window       {found.frames} frames, stride {found.stride}, "
            f"{found.size}x{found.size} pixels"
            + (f", one every {found.hop} frames" if found.hop else "")
        )
    if found.fps:
        click.echo(f"rate         {found.fps:g} frames a second")
    click.echo(f"grid         {t}x{h}x{w} = {t * h * w} tokens of {found.codebook_size}")
    for split in opened.splits:
        counts = np.zeros(found.codebook_size, dtype=np.int64)
        size = 0
        for shard in range(opened.num_shards(split)):
            counts += token_counts(opened.read_shard(split, shard), found.codebook_size)
            size += opened.part(split, shard)["bytes"]
        use = codebook_use(counts)
        click.echo(
            f"{split:12s} {opened.num_windows(split):,} windows in {opened.num_shards(split)} "
            f"shards, {size / 1e6:.1f} MB, codebook {use.share:.1%} used ({use.dead} dead), "
            f"perplexity {use.perplexity:.1f}, {use.bits:.2f} bits per token"
        )
    for key, value in found.extra.items():
        click.echo(f"{key:12s} {value}")


@command.command("verify")
@click.argument("store", type=PLACE)
def verify(store: Place) -> None:
    """Re-hash every file of STORE; exit code 1 and a list if anything is wrong.

    \b
    Example:
      mebt tokens verify tokens
    """
    opened = TokenStore(store, allow_partial=True)
    wrong = opened.verify()
    for line in wrong:
        click.echo(line)
    if wrong:
        raise TokenStoreError(f"{store}: {len(wrong)} things are wrong.")
    count = sum(opened.num_shards(split) for split in opened.splits)
    click.echo(f"{store}: all {count} shards are as they were written")


@command.command("repair")
@click.argument("store", type=PLACE)
@click.option(
    "--frames",
    type=PLACE,
    required=True,
    help="Frames that its tokens were made of: a folder, or a bucket.",
)
@click.option("--tokenizer", type=FILE, required=True, help="Tokenizer that made its tokens.")
@workers_option
@device_option
def repair(store: Place, frames: Place, tokenizer: Path, workers: int | None, device: str) -> None:
    """Encode anew what `verify` finds broken in STORE, and nothing else.

    All values are those that STORE was made with. Imported and sampled tokens have no frames: run
    the command that made them again, it does the same.

    \b
    Example:
      mebt tokens repair tokens --frames frames --tokenizer models/fish-64.safetensors
    """
    opened = TokenStore(store, allow_partial=True)
    if opened.info.hop is None:
        raise TokenStoreError(
            f"{store} was not made by `mebt tokenize`, so there are no frames to mend it from; run "
            "the command that made it again."
        )
    with user_errors():
        model = load_tokenizer(tokenizer, device)
    check_tokenizer(opened, tokenizer, identity(model))
    videos = scan_frames(frames).videos
    check_source(opened, videos, frames)
    files = open_storage(store)
    with files.lock():
        plan = _planned_again(opened, videos, model)
        writer = create_store(files, opened.info, plan, source=list_frames(videos, frames))
        broken = writer.unfinished()
        total = sum(len(range(*opened.shard_rows(*shard))) for shard in broken)
        with progress("repair", total, "window") as advance:
            done = encode_shards(
                writer,
                broken,
                videos,
                encoder_of(model, half=opened.info.half),
                batch_size=TokenizeConfig.batch_size,
                workers=spare_cores(device) if workers is None else workers,
                advance=advance,
            )
    refuse_damaged(done.damaged, "All shards without them are whole; mend them, and repair again.")
    names = ", ".join(f"{split} {shard}" for split, shard in broken)
    click.echo(f"{store}: " + (f"encoded {total:,} windows anew: {names}" if broken else "whole"))


def _planned_again(store: TokenStore, videos: Sequence[Video], model: VQGAN) -> pa.Table:
    """Makes the plan that a store was made with, whatever became of its file."""
    info = store.info
    keys = ("frames", "stride", "hop", "size", "shard_windows", "chunk_windows")
    try:
        config = TokenizeConfig(
            **{key: getattr(info, key) for key in keys}, seed=info.extra.get("seed", 0)
        )
        fits = model.config.grid(config.frames, config.size, config.size) == info.grid
    except (TypeError, ValueError) as error:
        raise TokenStoreError(f"{store.files.place(INFO)} is impossible: {error}") from None
    if not fits:
        raise TokenStoreError(f"{store.files.place(INFO)} is impossible: no window has its grid.")
    return plan_windows(videos, config).table


def _raw_array(path: Path, codebook_size: int) -> str:
    """Says what a file without a header may be, and how to give it one."""
    kind = "uint16" if codebook_size <= 1 << 16 else "uint32"
    read = f"np.memmap({str(path)!r}, '{kind}', 'r').reshape(-1, t, h, w)"
    return (
        f"{path} is no .npy: it begins with no header. If its {path.stat().st_size:,} bytes are a "
        "raw array, as np.memmap and tofile write it, say of which type and grid it is, for "
        f"example: python -c \"import numpy as np; np.save('ids.npy', {read})\" with numbers for "
        "t, h and w, and import ids.npy. Anything else, such as a pickle, is not read."
    )


def _open_ids(path: Path, codebook_size: int) -> NDArray[np.integer]:
    """Maps an `.npy` of ids [N, t, h, w] into memory. Never unpickles."""
    with path.open("rb") as file:
        if not file.read(len(NPY)).startswith((NPY, ZIP)):
            raise PipelineError(_raw_array(path, codebook_size))
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path} is no .npy of numbers: {str(error).rstrip('.')}.") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 4 or ids.dtype.kind not in "iu":
        kind = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "an archive"
        raise PipelineError(f"{path} must hold integers [N, t, h, w], but holds {kind}.")
    if not ids.size:
        raise PipelineError(f"{path} holds no window: its shape is {list(ids.shape)}.")
    if int(ids.min()) < 0 or int(ids.max()) >= codebook_size:
        raise PipelineError(
            f"{path} holds ids {ids.min()} … {ids.max()}, but --codebook-size is {codebook_size}: "
            f"ids must be 0 … {codebook_size - 1}."
        )
    return ids


@command.command("import")
@click.argument("ids", type=click.Path(exists=True, path_type=Path))
@click.option("--codebook-size", type=click.IntRange(min=1), help="Of an .npy: ids are below it.")
@click.option("--test", "test", type=FILE, help="Ids of held-out windows, of the same grid.")
@click.option("--out", type=PLACE_OUT, required=True, help="Token store to make.")
@overwrite_option
def import_ids(
    ids: Path, codebook_size: int | None, test: Path | None, out: Place, overwrite: bool
) -> None:
    """Make a store of IDS, an .npy of integers [N, t, h, w] from any tokenizer.

    Such a store trains and samples; `decode` cannot turn its tokens into pictures, because their
    tokenizer is not known here. IDS may also be a folder that `tokens export --format webdataset`
    wrote: it becomes the store that it was.

    \b
    Example:
      mebt tokens import ids.npy --codebook-size 8192 --out tokens
      mebt tokens import tars --out tokens
    """
    keep_apart(out, ids, test)
    if ids.is_dir():
        if codebook_size or test:
            raise click.UsageError(f"{ids} says all: give no --codebook-size and no --test.")
        total = sum(TokenStore(ids, allow_partial=True).info.counts.values())
        with progress("import", total, "window") as advance:
            store = restore_tars(ids, out, advance=advance, overwrite=overwrite)
        click.echo(f"{out}: {total:,} windows, fingerprint {store.fingerprint[:12]}")
        return
    if codebook_size is None:
        raise click.UsageError("give --codebook-size: an .npy does not say it.")
    arrays = {"train": _open_ids(ids, codebook_size)}
    if test is not None:
        arrays["test"] = _open_ids(test, codebook_size)
        if arrays["test"].shape[1:] != arrays["train"].shape[1:]:
            raise PipelineError(
                f"{test} has a grid {list(arrays['test'].shape[1:])}, but {ids} has "
                f"{list(arrays['train'].shape[1:])}."
            )
    t, h, w = arrays["train"].shape[1:]
    counts = {split: len(array) for split, array in arrays.items()}
    digest = hashlib.sha256()
    for array in arrays.values():
        for start in range(0, len(array), SHARD_WINDOWS):
            digest.update(array[start : start + SHARD_WINDOWS].astype("<i8").tobytes())
    made = StoreInfo(
        tokenizer=None,
        codebook_size=codebook_size,
        grid=(t, h, w),
        source=digest.hexdigest(),
        counts=counts,
        shard_windows=SHARD_WINDOWS,
    )
    files = open_storage(out)
    with files.lock():
        plan = numbered_plan(counts, "imported", made.shard_windows)
        writer = create_store(files, made, plan, overwrite=overwrite)
        with progress("import", sum(counts.values()), "window") as advance:
            done = set(made.shards()) - set(writer.unfinished())
            for split, shard in made.shards():
                start, stop = made.shard_rows(split, shard)
                if (split, shard) not in done:
                    writer.write_shard(split, shard, np.asarray(arrays[split][start:stop]))
                advance(stop - start)
    windows = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    click.echo(f"{out}: {windows} windows of {t}x{h}x{w} tokens, codebook {codebook_size}")


@command.command("export")
@click.argument("store", type=PLACE)
@click.option("--split", help="Split to take out; needed if there is more than one.")
@click.option(
    "--format",
    type=click.Choice(["npy", "webdataset"]),
    default="npy",
    show_default=True,
    help="One array of a split, or tars of all, in which each window is a sample.",
)
@click.option("--out", type=OUT, required=True, help=".npy file, or folder of tars, to write.")
def export(store: Place, split: str | None, format: str, out: Path) -> None:
    """Write the ids of one split as an .npy [N, t, h, w], or all as WebDataset tars.

    `mebt tokens import` makes the same store of the tars again.

    \b
    Example:
      mebt tokens export tokens --split train --out ids.npy
      mebt tokens export tokens --format webdataset --out tars
    """
    keep_apart(out, store)
    if format == "webdataset":
        if split:
            raise click.UsageError("--split is for --format npy: tars are of all splits.")
        opened = TokenStore(store)
        total = sum(opened.info.counts.values())
        with progress("export", total, "window") as advance:
            export_tars(opened, out, advance=advance)
        click.echo(f"{out}: {total:,} windows")
        return
    opened = TokenStore(store)
    split = choose_split(split, opened.splits, store)
    if out.suffix != ".npy":
        raise click.UsageError(f"--out {out}: give a name that ends in .npy.")
    count = opened.num_windows(split)
    with replacing(out) as temporary:
        array = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=opened.info.dtype, shape=(count, *opened.grid)
        )
        with progress("export", count, "window") as advance:
            for shard in range(opened.num_shards(split)):
                start, stop = opened.shard_rows(split, shard)
                array[start:stop] = opened.read_shard(split, shard)
                advance(stop - start)
        array.flush()
        del array
    click.echo(f"{out}: {count:,} windows of {split}")
