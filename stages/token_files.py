"""`mebt tokens import` and `export`: ids of other programs in and out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click

from pipeline.errors import user_errors
from pipeline.exchange.detect import given_splits, open_ids, outside_splits
from pipeline.exchange.ids import Ids, ImportConfig, Maker
from pipeline.exchange.into_store import codebook_of, import_ids
from pipeline.exchange.npy import export_npy
from pipeline.exchange.own_tars import export_tars, open_exported, restore_tars
from pipeline.exchange.to_one_x import export_one_x
from pipeline.progress import progress
from pipeline.size import sides
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from pipeline.store.layout import CAPTION, INFO, LABEL, TEXTS, StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.states import STATES
from stages.conditioned import FromType
from stages.options import FILE, OUT, PLACE, PLACE_OUT, NumberRange, choose_split, overwrite_option
from tokenizer import load_tokenizer, tokens_identity

ANY = click.Path(exists=True, path_type=Path)
FRAMES = click.IntRange(1, 1 << 24)


class LevelsType(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers from 2 on, with commas."""

    name = "n,n,…"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Returns the numbers."""
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            self.fail(f"{value!r} is not of whole numbers with commas, such as 8,8,8,5,5,5.")
        levels = tuple(map(int, parts))
        if min(levels) < 2:
            self.fail(f"{value!r}: each level must be at least 2.")
        return levels


@click.command("import")
@click.argument("ids", type=ANY)
@click.option("--codebook-size", type=click.IntRange(min=1), help="Ids are below it.")
@click.option(
    "--tokenizer",
    type=FILE,
    help="What made the ids, as `import-tokenizer` writes it: then they can be decoded.",
)
@click.option(
    "--levels",
    type=LevelsType(),
    default=(),
    help="The last axis holds digits of ids, of so many levels each; the first is the lowest.",
)
@click.option("--frames", type=FRAMES, help="Latent frames of a window.")
@click.option(
    "--stride",
    type=FRAMES,
    default=1,
    show_default=True,
    help="Latent frames from one of a window to the next.",
)
@click.option(
    "--hop",
    type=FRAMES,
    help="Latent frames from one window's start to the next.  [default: windows do not overlap]",
)
@click.option("--test", "test", type=ANY, help="Held-out ids, of the same form and grid.")
@click.option(
    "--test-share",
    type=NumberRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Last share of each video's time that is held out.",
)
@click.option(
    "--labels",
    type=FromType("beside"),
    help="CSV or Parquet of video and label, a video is named, or a row; or beside: of tars, what "
    "KEY.json and KEY.cls say.",
)
@click.option(
    "--captions",
    type=FromType("beside"),
    help="CSV or Parquet of video and caption, named as for --labels; or beside: of tars, what "
    "KEY.json and KEY.txt say. Kept for other programs.",
)
@click.option(
    "--states",
    type=FILE,
    help="CSV or Parquet of video, frame and names: numbers of each frame, counted from 0. Of "
    "latent frames, unless the tokenizer or the files say how many frames one is.",
)
@click.option("--out", type=PLACE_OUT, required=True, help="Token store to make.")
@overwrite_option
def import_command(
    ids: Path,
    test: Path | None,
    out: Place,
    tokenizer: Path | None,
    labels: Path | Literal["beside"] | None,
    captions: Path | Literal["beside"] | None,
    states: Path | None,
    overwrite: bool,
    **values: int | float | tuple[int, ...] | None,
) -> None:
    """Make a store of IDS of any tokenizer; what IDS is, is told by what is there.

    \b
      ids.npy       windows [N, t, h, w], or one video [T, h, w]
      folder        of a video in each .npy or .safetensors, [T, h, w]
      tars          WebDataset: a video in each KEY.npy; a folder of them, or one
      1X's layouts  metadata.json with video.bin (v1.1) or shards (v2.0)
      our tars      of `tokens export --format webdataset`: the store that it was

    Videos are cut into windows of --frames; none crosses a segment of 1X. Folders `train` and
    `test` inside IDS are the splits. Such a store trains and samples; for `decode` to turn its
    tokens into pictures, name their --tokenizer.

    \b
    Example:
      mebt tokens import ids.npy --codebook-size 8192 --out tokens
      mebt tokens import videos --codebook-size 8192 --frames 4 --hop 2 --out tokens
      mebt tokens import digits --levels 8,8,8,5,5,5 --frames 5 --out tokens
      mebt tokens import train_v1.1 --test val_v1.1 --frames 16 --stride 15 --out tokens
      mebt tokens import val_v2.0 --tokenizer cosmos.safetensors --out tokens
      mebt tokens import videos --codebook-size 8192 --frames 4 --labels labels.csv --out tokens
      mebt tokens import clips --codebook-size 8192 --labels beside --out tokens
      mebt tokens import tars --out tokens
    """
    texts = {LABEL: labels, CAPTION: captions}
    files = {name: given for name, given in texts.items() if isinstance(given, Path)}
    beside = tuple(name for name, given in texts.items() if given == "beside")
    keep_apart(out, ids, test, tokenizer, *files.values(), states)
    maker = _maker(tokenizer) if tokenizer else None
    config = ImportConfig(**values, maker=maker, beside=beside)  # type: ignore[arg-type]
    if ids.is_dir() and (ids / INFO).exists():
        exported = open_exported(ids)
        if test or files or states or config != ImportConfig():
            raise click.UsageError(f"{ids} says all: give no option but --out and --overwrite.")
        store = restore_tars(exported, out, overwrite=overwrite)
        total = sum(store.info.counts.values())
        click.echo(f"{out}: {total:,} windows, fingerprint {store.fingerprint[:12]}")
        return
    if config.levels and config.codebook_size:
        raise click.UsageError("give one of --codebook-size and --levels, which make one, too.")
    sources, said = _opened(ids, test, config)
    if codebook_of(list(sources.values()), config) is None:
        raise click.UsageError(f"give --codebook-size or --levels: {ids} does not say it.")
    made = import_ids(sources, out, config, texts=files, states=states, overwrite=overwrite)
    for line in (*said, *made.said, *_told(made.info, out)):
        click.echo(line)


def _told(info: StoreInfo, out: Place) -> Iterator[str]:
    """Says what was made, and which axis is which: an array does not tell if they were mixed up."""
    windows = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
    t, h, w = info.grid
    each = f"{t} latent frames of {h}x{w} tokens"
    yield f"{out}: {windows} windows of {each}, codebook {info.codebook_size}"
    if info.size:
        height, width = sides(info.size)
        yield f"a window is decoded as {info.frames} frames of {height}x{width} pixels"


def _maker(path: Path) -> Maker:
    with user_errors():
        model = load_tokenizer(path)
    known = model.config
    return Maker(tokens_identity(model), known.codebook_size, known.downsample, bool(known.causal))


def _opened(
    ids: Path, test: Path | None, config: ImportConfig
) -> tuple[dict[str, Ids], tuple[str, ...]]:
    """Opens the ids of each split; returns also what is to be said of what is left out."""
    places = given_splits(ids)
    said = outside_splits(ids) if len(places) > 1 else ()
    if (len(places) > 1) + (test is not None) + (config.test_share > 0) > 1:
        raise click.UsageError(
            "the test is given by one of --test, --test-share, or folders train and test in IDS."
        )
    if test is not None:
        places["test"] = test
    return {split: open_ids(place, config) for split, place in places.items()}, said


@click.command("export")
@click.argument("store", type=PLACE)
@click.option("--split", help="Split to take out; needed if there is more than one.")
@click.option(
    "--format",
    type=click.Choice(["npy", "webdataset", "1x"]),
    default="npy",
    show_default=True,
    help="One array of a split, tars of all in which each window is a sample, or 1X's v1.1 layout.",
)
@click.option("--out", type=OUT, required=True, help=".npy file, or folder, to write.")
def export_command(store: Place, split: str | None, format: str, out: Path) -> None:
    """Write the ids of one split as an .npy [N, t, h, w] or as 1X lays them out, or all as tars.

    `mebt tokens import` makes the same store of the tars again, and the same windows of the others.

    \b
    Example:
      mebt tokens export tokens --split train --out ids.npy
      mebt tokens export tokens --format webdataset --out tars
      mebt tokens export tokens --split train --format 1x --out train_v1.1
    """
    keep_apart(out, store)
    opened = TokenStore(store)
    if format == "webdataset":
        if split:
            raise click.UsageError("--split is not for --format webdataset: tars are of all.")
        total = sum(opened.info.counts.values())
        with progress("export", total, "window") as advance:
            export_tars(opened, out, advance=advance)
        click.echo(f"{out}: {total:,} windows")
        return
    split = choose_split(split, opened.splits, store)
    if format == "1x":
        with progress("export", opened.num_windows(split), "window") as advance:
            for line in export_one_x(opened, split, out, advance=advance):
                click.echo(line)
    else:
        if out.suffix != ".npy":
            raise click.UsageError(f"--out {out}: give a name that ends in .npy.")
        export_npy(opened, split, out)
        for what, there in (
            *((f"{name}s", name in opened.plan().column_names) for name in TEXTS),
            ("states", STATES in opened.info.extra),
        ):
            if there:
                click.echo(f"left out the {what}: an .npy holds tokens alone; tars keep all")
    click.echo(f"{out}: {opened.num_windows(split):,} windows of {split}")
