"""videos -> frame folders in the published naming, split into train and test by time."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click

from pipeline.config import load_section
from pipeline.errors import FrameError
from pipeline.frames.given import expand
from pipeline.frames.tars import describe_broken
from pipeline.rates import DIFFERENT, RECORD
from pipeline.storage.files import keep_apart
from pipeline.video.extract import (
    Extracted,
    Format,
    extract,
    first_reason,
    known_hashes,
)
from pipeline.video.filters import check_filters
from pipeline.video.sources import find_videos
from pipeline.video.synthetic import synthetic_videos
from pipeline.video.tiles import ExtractConfig
from stages.options import (
    OUT,
    WORD,
    as_stored_option,
    cameras_option,
    overwrite_option,
    params_options,
    skip_broken_option,
)


@click.command("extract")
@click.option(
    "--videos",
    type=WORD,
    multiple=True,
    help="Folder of videos (anything FFmpeg reads) or of tars; or a tar, a pattern such as "
    "'shards/{000..041}.tar', or s3://bucket/prefix. Repeat it for several tars.",
)
@as_stored_option("extract")
@click.option("--synthetic", type=click.IntRange(min=1), help="Draw this many videos instead.")
@click.option("--out", type=OUT, required=True, help="Frame folder to make.")
@click.option(
    "--format",
    type=click.Choice(get_args(Format)),
    default="folder",
    show_default=True,
    help="Images in folders, or tars in which each clip is a sample.",
)
@skip_broken_option
@cameras_option
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=256),
    help="Videos decoded at a time.  [default: one for each core]",
)
@params_options
@overwrite_option
def command(
    videos: tuple[str, ...],
    as_stored: tuple[str, ...],
    synthetic: int | None,
    out: Path,
    format: Format,
    skip_broken: bool,
    cameras: tuple[str, ...],
    workers: int | None,
    params: Path,
    overrides: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turn videos into frame folders, split into train and test by time.

    Videos are shown as players show them: turned and mirrored as phones say, in square pixels,
    HDR mapped to common colours; --as-stored leaves out all but the last. Videos in folders `train`
    and `test` stay in these. Writes OUT/train.txt and OUT/test.txt, which list the frames, and
    OUT/extract.json, which says what became of every video. With --format webdataset, the frames
    are in WebDataset tars instead, for disks that are slow with many files; `tokenize` makes the
    same tokens of them. Values: section `extract` of the params file.

    \b
    Example:
      mebt extract --videos my_videos/ --out frames --set extract.size=64
      mebt extract --videos my_videos/ --out frames --set 'extract.size=[72,128]'
      mebt extract --synthetic 64 --out frames
      mebt extract --videos my_videos/ --out frames --format webdataset
      mebt extract --videos 'shards/{000..041}.tar' --out frames --skip-broken
    """
    config = load_section(params, "extract", ExtractConfig, (*overrides, *as_stored))
    if bool(videos) == bool(synthetic):
        raise click.UsageError("give either --videos or --synthetic.")
    places = expand(videos)
    keep_apart(out, *places, params, inside=True)
    check_filters(config.filters)
    known = known_hashes(out)
    if places:
        sources, foreign = find_videos(
            places, config, out=out, known=known, skip_broken=skip_broken, cameras=cameras
        )
    else:
        sources, foreign = synthetic_videos(synthetic or 0, config), []
    if not sources:
        raise FrameError(
            f"{videos[0]} holds no video ({len(foreign)} other files){first_reason(foreign)}."
        )
    extracted = extract(
        sources,
        foreign,
        out,
        config,
        format=format,
        workers=workers,
        known=known,
        overwrite=overwrite,
    )
    for line in _told(extracted, out):
        click.echo(line)


def _told(made: Extracted, out: Path) -> Iterator[str]:
    """Yields what to say of an extraction: each kind of note once, and what was rejected."""
    for texts in made.notes.values():
        (name, text), *more = texts.items()
        others = f" (and {len(more)} more videos alike: see {out / RECORD})" if more else ""
        yield f"{name}: {text}{others}"
    if made.slowest and made.fastest and made.fastest > DIFFERENT * made.slowest:
        yield (
            f"videos run at {made.slowest:.5g} to {made.fastest:.5g} frames a second, and the same "
            "motion looks faster in some; extract.fps gives all of them one rate"
        )
    yield from describe_broken(made.rejected)
    for rejected in made.rejected[:5]:
        yield f"rejected {rejected.name}: {rejected.reason}"
    if len(made.rejected) > 5:
        yield f"rejected {len(made.rejected) - 5} more: see {out / RECORD}"
    rate = f" at {made.fps:.5g} frames a second" if made.fps else ""
    yield (
        f"{out}: {made.num_videos} videos in; kept {made.clips['train']} train and "
        f"{made.clips['test']} test clips ({made.num_frames:,} frames{rate}), "
        f"rejected {len(made.rejected)}"
    )
