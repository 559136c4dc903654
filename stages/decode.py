"""tokens -> videos: an mp4 of each, a contact sheet, exact frames on request."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.background import background_writer
from pipeline.config import load_section
from pipeline.errors import user_errors
from pipeline.pixels import to_bytes
from pipeline.progress import progress
from pipeline.rates import playing_rate
from pipeline.storage.files import keep_apart, lock
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import check_tokenizer
from pipeline.tuning import MEDIUM, keep_freed
from pipeline.video.decoded import EXACT, DecodeConfig, Outputs
from stages.options import (
    FILE,
    OUT,
    PLACE,
    choose_split,
    device_option,
    overwrite_option,
    params_options,
)
from tokenizer import Tokenizer, decode_pieces, identity, load_tokenizer, tokens_identity
from tokenizer.pieces import check_pieces, num_frames_of


@dataclass(frozen=True)
class Decoded:
    """What `decode` made."""

    total: int
    written: int
    """Videos written in this call."""
    on_sheet: int
    sheet: Path
    said: list[str]
    """What the user is to know of the rate at which the videos and the sheet play."""


def decode(
    tokens: Place,
    tokenizer: Path,
    out: Path,
    config: DecodeConfig,
    *,
    split: str | None = None,
    limit: int | None = None,
    exact: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
) -> Decoded:
    """Decodes a split of a token store; goes on where an earlier call was cut off.

    Holds two batches and the videos of the sheet in memory, whatever the number of windows; of long
    ones pieces of `config.piece_frames`. Raises PipelineError if the tokenizer is not the one that
    made the tokens, or `out` holds videos of something else.
    """
    store = TokenStore(tokens)
    with user_errors():
        model = load_tokenizer(tokenizer, device)
    check_tokenizer(store, tokenizer, tokens_identity(model))
    split = split or store.splits[0]
    count = min(limit or store.num_windows(split), store.num_windows(split))
    fps, said = playing_rate(config.fps, store.info.fps)
    most = config.piece_frames // model.config.downsample[0]
    if is_long := store.grid[0] > most:
        with user_errors("decode.piece_frames"):
            check_pieces(model.config, config.piece_frames)
        keep_freed(MEDIUM)  # The first piece and the others differ in size: gaps would add a third.
    made_from = {
        "tokens": store.fingerprint,
        "tokenizer": identity(model),
        "split": split,
        "count": count,
        "config": config.recorded(fps, in_pieces=is_long),
    }
    files = Outputs(out, split, count, num_frames_of(model.config, store.grid[0]), config)
    _, *sides = (n * side for n, side in zip(store.grid, model.config.downsample, strict=True))
    files.check_sheet(*sides)
    with lock(out):
        files.prepare(made_from, overwrite=overwrite)
        rows = [row for row in range(count) if files.needed(row, exact=exact)]
        written = sum(files.missing(row, exact=exact) for row in rows)
        total, unit = (files.num_frames, "frame") if is_long else (1, "video")
        with (
            progress("decode", len(rows) * total, unit) as advance,
            files.writer(fps, exact=exact) as write_now,
            background_writer(write_now, at_most=config.batch_size) as write,
        ):
            for row, frames, is_last in _decoded(store, split, count, rows, model, config):
                write(row, frames, is_last=is_last)
                advance(len(frames) if is_long else 1)
    notes = [said, files.frames_skipped(fps), files.frames_not_shown()]
    return Decoded(count, written, files.on_sheet, files.sheet, list(filter(None, notes)))


@torch.inference_mode()
def _decoded(
    store: TokenStore,
    split: str,
    count: int,
    rows: list[int],
    model: Tokenizer,
    config: DecodeConfig,
) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
    """Yields each of `rows` with its frames [T, H, W, 3], one shard and one batch at a time.

    Long ones come in parts, those of a batch in turn; with each it says if it is the row's last.

    Batches are cut from all `count` rows, whichever are wanted: the last bit of a picture can
    depend on what is decoded beside it, and a resumed run shall give the same.
    """
    device, batch_size = next(model.parameters()).device, config.batch_size
    half = config.precision == "bf16-mixed"
    most = config.piece_frames // model.config.downsample[0]
    num_frames = num_frames_of(model.config, store.grid[0])
    wanted = set(rows)
    for shard in range(store.num_shards(split)):
        first, last = store.shard_rows(split, shard)
        last = min(last, count)
        if wanted.isdisjoint(range(first, last)):
            continue
        tokens = torch.from_numpy(store.read_shard(split, shard)[: last - first])
        for start in range(first, last, batch_size):
            batch = range(start, min(start + batch_size, last))
            if wanted.isdisjoint(batch):
                continue
            parts = decode_pieces(model, tokens[start - first : batch.stop - first], most=most)
            done = 0
            while done < num_frames:
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    video = to_bytes(next(parts))
                done += video.shape[1]
                is_last = done == num_frames
                yield from ((row, video[row - start], is_last) for row in batch if row in wanted)


@click.command("decode")
@click.option("--tokens", type=PLACE, required=True, help="Any token store.")
@click.option("--tokenizer", type=FILE, required=True, help="Tokenizer that made the tokens.")
@click.option("--out", type=OUT, required=True, help="Folder of videos to make or to go on with.")
@click.option("--split", help="Split to decode; needed if there is more than one.")
@click.option("--limit", type=click.IntRange(min=1), help="Decode the first so many windows only.")
@click.option("--exact", is_flag=True, help=f"Write exact pixels to OUT/{EXACT} as well.")
@params_options
@device_option
@overwrite_option
def command(
    tokens: Place,
    tokenizer: Path,
    out: Path,
    split: str | None,
    limit: int | None,
    exact: bool,
    params: Path,
    overrides: tuple[str, ...],
    device: str,
    overwrite: bool,
) -> None:
    """Turn tokens into videos.

    Writes an mp4 of each window and one contact sheet that plays them side by side; with --exact
    also their exact pixels, a zarr array [N, T, H, W, 3]. Windows of more than
    `decode.piece_frames` frames are decoded in pieces that overlap, in constant memory. Values:
    section `decode` of the params file.

    \b
    Example:
      mebt decode --tokens samples/tokens --tokenizer models/fish-64.safetensors --out videos
      mebt decode --tokens tokens --split test --limit 16 --tokenizer t.safetensors --out real
    """
    keep_apart(out, tokens, tokenizer, params)
    config = load_section(params, "decode", DecodeConfig, overrides)
    split = choose_split(split, TokenStore(tokens).splits, tokens)
    decoded = decode(
        tokens,
        tokenizer,
        out,
        config,
        split=split,
        limit=limit,
        exact=exact,
        device=device,
        overwrite=overwrite,
    )
    for line in decoded.said:
        click.echo(line)
    done = f"{decoded.written} written now" if decoded.written else "nothing to do"
    click.echo(
        f"{out}: {decoded.total} videos; {done}; the first {decoded.on_sheet} on {decoded.sheet}"
    )
