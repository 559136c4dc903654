"""Look into token stores, check and mend them, bring tokens in, take tokens out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pyarrow as pa

from pipeline.errors import TokenStoreError, user_errors
from pipeline.frames.given import Frames
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import Video
from pipeline.metrics import codebook_use
from pipeline.progress import progress
from pipeline.size import sides
from pipeline.storage.places import Place, open_storage
from pipeline.store.given import Given
from pipeline.store.layout import CAPTION, INFO, LABEL, REDO
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import check_tokenizer
from pipeline.store.states import STATES, STATES_HASH, States
from pipeline.store.writer import create_store
from pipeline.video.films import find_frames
from pipeline.windows.encode import encode_shards, encoder_of
from pipeline.windows.given import StatesFrom, TextsFrom, conditioned_again
from pipeline.windows.of_tokens import check_source
from pipeline.windows.plan import TokenizeConfig, plan_windows
from pipeline.windows.verify import refuse_damaged
from stages.conditioned import conditions_options
from stages.frame_options import FRAMES
from stages.options import FILE, PLACE, device_option, spare_cores, workers_option
from stages.token_files import export_command, import_command
from tokenizer import Tokenizer, load_tokenizer, tokens_identity

MAX_NAMES = 20
"""Labels that are shown with their number of windows."""


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
            f"window       {found.frames} frames, stride {found.stride}"
            + (f", {'x'.join(map(str, sides(found.size)))} pixels" if found.size else "")
            + (f", one every {found.hop} frames" if found.hop else "")
        )
    if found.fps:
        click.echo(f"rate         {found.fps:g} frames a second")
    click.echo(f"grid         {t}x{h}x{w} = {t * h * w} tokens of {found.codebook_size}")
    for split in opened.splits:
        use = codebook_use(opened.token_counts(split))
        size = sum(opened.part(split, shard)["bytes"] for shard in range(opened.num_shards(split)))
        click.echo(
            f"{split:12s} {opened.num_windows(split):,} windows in {opened.num_shards(split)} "
            f"shards, {size / 1e6:.1f} MB, codebook {use.share:.1%} used ({use.dead} dead), "
            f"perplexity {use.perplexity:.1f}, {use.bits:.2f} bits per token"
        )
    for name, said in _conditions(opened):
        click.echo(f"{name:12s} {said}")
    for key, value in found.extra.items():
        if key not in (STATES, STATES_HASH):
            click.echo(f"{key:12s} {value}")


def _conditions(store: TokenStore) -> Iterator[tuple[str, str]]:
    """Says what is known of windows: labels, captions, and numbers of their frames."""
    counts = Counter(store.plan()[LABEL].to_pylist() if store.label_names else [])
    if unknown := counts.pop(None, 0):
        yield "no label", f"{unknown:,} windows"
    if counts:
        shown = [f"{name} {counts[name]:,}" for name in store.label_names[:MAX_NAMES]]
        more = f" and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
        yield "labels", f"{len(counts):,}, by windows: {', '.join(shown)}{more}"
    if CAPTION in (plan := store.plan()).column_names:
        yield "captions", f"of {len(plan) - plan[CAPTION].null_count:,} of {len(plan):,} windows"
    if states := States.of(store.info):
        widths = ", ".join(f"{name} ({width})" for name, width in states.widths.items())
        yield "states", f"{widths} of each of {states.frames} frames"


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
    type=FRAMES,
    required=True,
    help="Frames that its tokens were made of, as `tokenize` was given them.",
)
@click.option("--tokenizer", type=FILE, required=True, help="Tokenizer that made its tokens.")
@conditions_options(" Needed if the store's own are broken.")
@workers_option
@device_option
def repair(
    store: Place,
    frames: Frames,
    tokenizer: Path,
    labels: TextsFrom | None,
    captions: TextsFrom | None,
    states: StatesFrom | None,
    workers: int | None,
    device: str,
) -> None:
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
    check_tokenizer(opened, tokenizer, tokens_identity(model))
    found = find_frames(frames, skip_broken=True)
    check_source(opened, found, frames)
    videos = found.videos
    files = open_storage(store)
    with files.lock():
        plan = _planned_again(opened, videos, model)
        texts = {LABEL: labels, CAPTION: captions}
        given = conditioned_again(opened, plan, videos, frames, texts=texts, states=states)
        writer = create_store(files, opened.info, given.plan, source=list_frames(videos, frames))
        broken = writer.unfinished()
        for shard in broken:
            _check_states(given, *shard)
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
                states=given.states,
            )
    refuse_damaged(done.damaged, "All shards without them are whole; mend them, and repair again.")
    names = ", ".join(f"{split} {shard}" for split, shard in broken)
    click.echo(f"{store}: " + (f"encoded {total:,} windows anew: {names}" if broken else "whole"))


def _check_states(given: Given, split: str, shard: int) -> None:
    """Raises TokenStoreError if the states of a shard are broken, and none are given."""
    try:
        given.states(split, shard)
    except TokenStoreError as error:
        said = str(error).removesuffix(f"; {REDO}.")
        raise TokenStoreError(f"{said}; give --states as `mebt tokenize` was given them.") from None


def _planned_again(store: TokenStore, videos: Sequence[Video], model: Tokenizer) -> pa.Table:
    """Makes the plan that a store was made with, whatever became of its file."""
    info = store.info
    keys = ("frames", "stride", "hop", "size", "shard_windows", "chunk_windows")
    try:
        config = TokenizeConfig(
            **{key: getattr(info, key) for key in keys}, seed=info.extra.get("seed", 0)
        )
        fits = model.config.grid(config.frames, *sides(config.size)) == info.grid
    except (TypeError, ValueError) as error:
        raise TokenStoreError(f"{store.files.place(INFO)} is impossible: {error}") from None
    if not fits:
        raise TokenStoreError(f"{store.files.place(INFO)} is impossible: no window has its grid.")
    return plan_windows(videos, config).table


command.add_command(import_command)
command.add_command(export_command)
