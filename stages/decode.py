"""tokens -> videos: an mp4 of each, a contact sheet, exact frames on request."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.background import behind
from pipeline.config import TokenizerPrecision, as_dict, load_section
from pipeline.device import send
from pipeline.errors import ConfigError, PipelineError, user_errors
from pipeline.pixels import to_bytes
from pipeline.progress import progress
from pipeline.rates import check_rate, playing_rate
from pipeline.storage.files import contents, keep_apart, lock, read_json, remove, write_json
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore, check_tokenizer
from pipeline.video.writer import shown_every, write_mp4, write_sheet
from stages.options import (
    FILE,
    OUT,
    PLACE,
    choose_split,
    device_option,
    overwrite_option,
    params_options,
)
from tokenizer import VQGAN, identity, load_tokenizer

RECORD = "decode.json"
EXACT = "frames.zarr"
MOST_ON_SHEET = 4096
LARGEST_SHEET = {"webp": 16383, "gif": 65535}
"""Longest side in pixels that the format can hold."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How tokens become videos."""

    fps: float | None = None
    """Frames per second of the videos and the sheet, 0.1 … 1000; null: as the frames that the
    tokens, or the samples' model, were made of; 8 if that is not known."""
    batch_size: int = 4
    """Windows decoded at once; changes speed and memory, pictures by rounding only."""
    sheet: Literal["webp", "gif"] = "webp"
    """Kind of the contact sheet: webp is smaller and has all colours."""
    sheet_videos: int = 64
    """Most videos on the contact sheet, up to 4096; they are held in memory together."""
    columns: int | None = None
    """Videos side by side on the sheet; null: about as many as there are rows."""
    precision: TokenizerPrecision = "32-true"
    """Of the tokenizer's convolutions. bf16-mixed is faster where the device multiplies in it;
    pixels differ by one or two of 255."""

    def __post_init__(self) -> None:
        check_rate(self.fps)
        for name in ("batch_size", "sheet_videos", "columns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.sheet_videos > MOST_ON_SHEET:
            raise ValueError(
                f"sheet_videos must be at most {MOST_ON_SHEET}, got {self.sheet_videos}."
            )
        if self.columns is not None and self.columns > self.sheet_videos:
            raise ValueError(
                f"columns must be at most sheet_videos, got {self.columns} and {self.sheet_videos}."
            )


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


class Outputs:
    """The files of one decoded split, and which of them are there."""

    def __init__(self, out: Path, split: str, count: int, config: DecodeConfig) -> None:
        self.out, self.split, self.count = out, split, count
        self.sheet = out / f"sheet.{config.sheet}"
        self.on_sheet = min(config.sheet_videos, count)
        self.columns = min(config.columns or math.ceil(math.sqrt(self.on_sheet)), self.on_sheet)

    def video(self, row: int) -> Path:
        """Returns where the video of a row goes."""
        return self.out / f"{self.split}-{row:05d}.mp4"

    def exact(self, row: int) -> Path:
        """Returns where the exact frames of a row lie inside their array."""
        return self.out / EXACT / "c" / str(row) / "0" / "0" / "0" / "0"

    def needed(self, row: int, *, exact: bool) -> bool:
        """Says whether something of this row is still to be made, if only its place on a sheet."""
        on_missing_sheet = row < self.on_sheet and not self.sheet.exists()
        return on_missing_sheet or self.missing(row, exact=exact)

    def missing(self, row: int, *, exact: bool) -> bool:
        """Says whether a file of this row is still to be made."""
        return not self.video(row).exists() or (exact and not self.exact(row).exists())

    def writer(self, fps: float, *, exact: bool) -> Callable[[int, NDArray[np.uint8]], None]:
        """Returns what writes whatever is still to be made of a row, from its frames.

        It is to be called with every row that is needed, in order.
        """
        sheet: list[NDArray[np.uint8]] = []
        array: zarr.Array[Any] | None = None

        def write(row: int, frames: NDArray[np.uint8]) -> None:
            nonlocal array
            if exact:
                array = _open_exact(self.out, self.count, frames) if array is None else array
                array[row] = frames
            if not self.video(row).exists():
                write_mp4(self.video(row), frames, fps=fps)
            if row < self.on_sheet and not self.sheet.exists():
                sheet.append(frames)
                if len(sheet) == self.on_sheet:
                    write_sheet(self.sheet, sheet, columns=self.columns, fps=fps)
                    sheet.clear()

        return write


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

    Holds two batches and the videos of the sheet in memory, whatever the number of windows. Raises
    PipelineError if the tokenizer is not the one that made the tokens, or `out` holds videos of
    something else.
    """
    store = TokenStore(tokens)
    with user_errors():
        model = load_tokenizer(tokenizer, device)
    check_tokenizer(store, tokenizer, identity(model))
    split = split or store.splits[0]
    count = min(limit or store.num_windows(split), store.num_windows(split))
    fps, said = playing_rate(config.fps, store.info.fps)
    settings = {**as_dict(config), "fps": fps}
    made_from = {
        "tokens": store.fingerprint,
        "tokenizer": store.info.tokenizer,
        "split": split,
        "count": count,
        # A precision as it always was is left out: folders of earlier versions go on.
        "config": {key: value for key, value in settings.items() if value != "32-true"},
    }
    files = Outputs(out, split, count, config)
    _check_sheet(files, config.sheet, store.grid, model)
    with lock(out):
        _prepare(out, made_from, overwrite=overwrite)
        rows = [row for row in range(count) if files.needed(row, exact=exact)]
        written = sum(files.missing(row, exact=exact) for row in rows)
        with (
            progress("decode", len(rows), "video") as advance,
            behind(files.writer(fps, exact=exact), at_most=config.batch_size) as write,
        ):
            for row, frames in _decoded(store, split, count, rows, model, config):
                write(row, frames)
                advance(1)
    notes = [said] if said else []
    if (step := shown_every(files.sheet.suffix, fps)) > 1:
        notes.append(
            f"{files.sheet}: one frame of {step}, as {config.sheet} plays no {fps:g} a second"
        )
    return Decoded(count, written, files.on_sheet, files.sheet, notes)


def _check_sheet(files: Outputs, kind: str, grid: tuple[int, int, int], model: VQGAN) -> None:
    """Raises ConfigError if the sheet's format cannot hold so many videos of this size."""
    _, height, width = (n * side for n, side in zip(grid, model.config.downsample, strict=True))
    rows = math.ceil(files.on_sheet / files.columns)
    longest = max(files.columns * (width + 2), rows * (height + 2))  # With a frame around each.
    if longest > LARGEST_SHEET[kind]:
        raise ConfigError(
            f"{rows} rows of {files.columns} videos make a sheet of {longest} pixels, but {kind} "
            f"holds {LARGEST_SHEET[kind]}; lower decode.sheet_videos, or set decode.columns."
        )


def _prepare(out: Path, made_from: dict[str, Any], *, overwrite: bool) -> None:
    """Makes the folder, or checks that the one there is of the same videos."""
    path = out / RECORD
    others = contents(out)
    if others and not path.exists():
        raise PipelineError(
            f"{out} holds {others[0].name} but no {RECORD}, so it is no folder of decoded videos; "
            "choose another --out."
        )
    found = read_json(path, PipelineError, "folder of decoded videos") if path.exists() else {}
    if others and found != made_from:
        if not overwrite:
            different = [key for key, value in made_from.items() if found.get(key) != value]
            raise PipelineError(
                f"{out} was made of other {different[0]}; choose another --out, or give "
                "--overwrite."
            )
        for file in sorted(others, key=lambda file: file.name == RECORD):
            remove(file)
    write_json(path, made_from)


@torch.inference_mode()
def _decoded(
    store: TokenStore,
    split: str,
    count: int,
    rows: list[int],
    model: VQGAN,
    config: DecodeConfig,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yields each of `rows` with its frames [T, H, W, 3], one shard and one batch at a time.

    Batches are cut from all `count` rows, whichever are wanted: the last bit of a picture can
    depend on what is decoded beside it, and a resumed run shall give the same.
    """
    device, batch_size = next(model.parameters()).device, config.batch_size
    half = config.precision == "bf16-mixed"
    wanted = set(rows)
    for shard in range(store.num_shards(split)):
        first, last = store.shard_rows(split, shard)
        last = min(last, count)
        if wanted.isdisjoint(range(first, last)):
            continue
        tokens = store.read_shard(split, shard)[: last - first].astype(np.int64)
        for start in range(first, last, batch_size):
            batch = range(start, min(start + batch_size, last))
            if wanted.isdisjoint(batch):
                continue
            chosen = torch.from_numpy(tokens[start - first : batch.stop - first])
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                decoded = model.decode(send(chosen, device))
            video = to_bytes(decoded.float())
            yield from ((row, video[row - start]) for row in batch if row in wanted)


def _open_exact(out: Path, count: int, frames: NDArray[np.uint8]) -> "zarr.Array[Any]":
    """Opens, or makes, the array [N, T, H, W, 3] of exact frames: one chunk a video."""
    if (out / EXACT / "zarr.json").exists():
        found = zarr.open_array(out / EXACT, mode="r+", zarr_format=3)
        return found.with_config({"write_empty_chunks": True})  # Opening forgets it.
    return zarr.create_array(
        out / EXACT,
        shape=(count, *frames.shape),
        chunks=(1, *frames.shape),
        dtype=np.uint8,
        compressors=[ZstdCodec(level=1, checksum=True)],
        config={"write_empty_chunks": True},  # A black video is a video, not a missing one.
    )


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
    also their exact pixels, a zarr array [N, T, H, W, 3]. Values: section `decode` of the params
    file.

    \b
    Example:
      mebt decode --tokens samples/tokens --tokenizer models/fish-64.safetensors --out videos
      mebt decode --tokens tokens --split test --limit 16 --tokenizer t.safetensors --out real
    """
    keep_apart(out, tokens, tokenizer, params)
    config = load_section(params, "decode", DecodeConfig, overrides)
    split = choose_split(split, TokenStore(tokens).splits, tokens)
    made = decode(
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
    for line in made.said:
        click.echo(line)
    done = f"{made.written} written now" if made.written else "nothing to do"
    click.echo(f"{out}: {made.total} videos; {done}; the first {made.on_sheet} on {made.sheet}")
