"""frames -> tokens -> frames: what a tokenizer keeps of any footage, beside it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.config import as_dict, load_section
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.reconstruction import Reconstructions, side_by_side, spread_and_worst
from pipeline.evaluation.sets import batches
from pipeline.frames.given import Frames, places_of
from pipeline.pixels import decode_tokens
from pipeline.report.reconstruction import about_window, reconstruction_page
from pipeline.size import sides
from pipeline.storage.files import (
    keep_apart,
    lock,
    remove,
    sha256_file,
    write_json,
    write_text,
)
from pipeline.storage.outputs import prepare_folder
from pipeline.video.writer import write_mp4
from pipeline.windows.apart import WindowsApart, windows_apart
from pipeline.windows.encode import Encode, encoder_of
from pipeline.windows.plan import TokenizeConfig, WindowReader
from stages.fitting import open_distances, open_tokenizer
from stages.frame_options import frames_options
from stages.options import (
    FILE,
    OUT,
    as_stored_option,
    device_option,
    overwrite_option,
    params_options,
)
from tokenizer import Tokenizer, identity

RECORD, METRICS, PAGE = "reconstruct.json", "metrics.json", "index.html"
SHOWN_SIDE = 192
"""Pixels that a small picture is enlarged to, at least."""


def reconstruct(
    frames: Frames,
    tokenizer: Path,
    out: Path,
    config: TokenizeConfig,
    *,
    skip_broken: bool = False,
    lpips: tuple[Path, ...] = (),
    limit: int = 128,
    num_shown: int = 8,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measures up to `limit` windows of any frames against what a tokenizer makes of them.

    Writes videos of `num_shown` windows and of as many of the worst, a page, and last the record
    that it returns. Raises PipelineError if the tokenizer cannot encode a window, a frame is
    damaged, or `out` holds something else.
    """
    model = open_tokenizer(tokenizer, config, device)
    footage = windows_apart(frames, config, limit, skip_broken=skip_broken)
    pictures = _pictures(model, footage.reader, lpips, config, device)
    made_from = {
        "tokenizer": identity(model),
        "source": footage.source,
        "lpips": sorted(map(sha256_file, lpips)),
        "config": {**as_dict(config), "limit": limit, "shown": num_shown},
    }
    encode = encoder_of(model, half=config.precision == "bf16-mixed")
    with lock(out):
        _prepare(out, made_from, overwrite=overwrite)
        gathered = _gathered(footage, pictures, encode, model.config.codebook_size, config)
        shown = spread_and_worst(len(footage.places), gathered.worst(num_shown), num_shown)
        for name, row in shown.items():
            real = footage.reader.pixels(*footage.places[row])
            (made,) = pictures.decode(encode(real[None]))
            enlarge = -(-SHOWN_SIDE // min(sides(config.size)))
            path = out / f"{name}.mp4"
            write_mp4(path, side_by_side(real, made), fps=footage.fps, enlarge=enlarge)
        record = gathered.record(shown, pictures.lpips)
        record |= {"notes": footage.notes, "made_from": made_from}
        write_text(out / PAGE, reconstruction_page(record))
        write_json(out / METRICS, record)
    return record


def _gathered(
    footage: WindowsApart,
    pictures: Pictures,
    encode: Encode,
    codebook_size: int,
    config: TokenizeConfig,
) -> Reconstructions:
    """Measures every window, a batch at a time."""
    gathered = Reconstructions(codebook_size)
    for part in batches(len(footage.places), config.batch_size, "windows"):
        places = footage.places[part]
        real = np.stack([footage.reader.pixels(*place) for place in places])
        tokens = encode(real)
        made = pictures.decode(tokens)
        likeness: Sequence[float | None] = pictures.perceptual(real, made) or [None] * len(places)
        for window in zip(places, real, made, tokens, likeness, strict=True):
            gathered.add(*window)
    return gathered


def _pictures(
    model: Tokenizer,
    reader: WindowReader,
    lpips: tuple[Path, ...],
    config: TokenizeConfig,
    device: str,
) -> Pictures:
    return Pictures(
        tokenizer=identity(model),
        read=reader.pixels,
        decode=partial(decode_tokens, model),
        encoder=model.features,
        lpips=open_distances(lpips, config.size, device),
        device=device,
    )


def _prepare(out: Path, made_from: dict[str, Any], *, overwrite: bool) -> None:
    prepare_folder(out, RECORD, made_from, what="folder of reconstructions", overwrite=overwrite)
    remove(out / METRICS)  # Until the new one is there, the folder is not finished.


@click.command("reconstruct")
@frames_options
@click.option("--tokenizer", type=FILE, required=True, help="Any tokenizer, .safetensors.")
@click.option("--out", type=OUT, required=True, help="Folder of videos, page and metrics to make.")
@click.option(
    "--lpips",
    type=FILE,
    multiple=True,
    help="Published weights of LPIPS on VGG16; give it once for each file that they lie in.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=100_000),
    default=128,
    show_default=True,
    help="Most windows to measure, evenly spread.",
)
@click.option(
    "--shown",
    type=click.IntRange(min=1, max=99),
    default=8,
    show_default=True,
    help="Windows to write videos of, and as many of the worst.",
)
@as_stored_option("tokenize")
@params_options
@device_option
@overwrite_option
def command(
    frames: Frames,
    skip_broken: bool,
    tokenizer: Path,
    out: Path,
    lpips: tuple[Path, ...],
    limit: int,
    shown: int,
    as_stored: tuple[str, ...],
    params: Path,
    overrides: tuple[str, ...],
    device: str,
    overwrite: bool,
) -> None:
    """Show what a tokenizer keeps of any frames: real, reconstructed, difference.

    Writes videos of windows side by side, OUT/index.html with a curve along the window, and
    OUT/metrics.json: PSNR, SSIM and, with --lpips, LPIPS, of each window and of all, and how many
    codes are used. Says so if the tokenizer does not fit the footage: if PSNR is less than 3 dB
    above that of the mean frame of each window (below 30 dB where next to nothing moves), or fewer
    than 5% of the codes are used. Windows: section `tokenize` of the params file; hop is ignored,
    as they share no frame.

    \b
    Example:
      mebt reconstruct --frames frames --tokenizer models/fish-64.safetensors --out kept
    """
    keep_apart(out, *places_of(frames), tokenizer, *lpips, params)
    config = load_section(params, "tokenize", TokenizeConfig, (*overrides, *as_stored))
    record = reconstruct(
        frames,
        tokenizer,
        out,
        config,
        skip_broken=skip_broken,
        lpips=lpips,
        limit=limit,
        num_shown=shown,
        device=device,
        overwrite=overwrite,
    )
    for line in record["notes"]:
        click.echo(line)
    for key, value in record["metrics"].items():
        click.echo(f"{key:32s} {value:.6g}")
    for key, why in record["not_computed"].items():
        click.echo(f"not computed: {key}: {why}")
    worst = [row for name, row in record["shown"].items() if name.startswith("worst")]
    for row in worst[:3]:
        click.echo(f"among the worst: {about_window(record['windows'][row])}")
    for line in record["misfits"]:
        click.echo(f"the tokenizer does not fit this footage: {line}")
    click.echo(f"{out}: {len(record['shown'])} videos; open {out / PAGE}")
