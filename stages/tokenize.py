"""frames -> a token store, with the frozen tokenizer."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
from lightning_fabric import Fabric

from pipeline.config import load_section
from pipeline.frame_list import source_of
from pipeline.frames.given import Frames, folder_of, places_of
from pipeline.frames.listing import list_frames
from pipeline.frames.scan import FrameFolder
from pipeline.frames.tars import Rejected
from pipeline.metrics import CodebookUse, codebook_use
from pipeline.pixels import decode_tokens
from pipeline.ranks import gathered, summed
from pipeline.rates import recorded_rate
from pipeline.size import sides
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from pipeline.store.claims import claim_shards
from pipeline.store.layout import CAPTION, LABEL, StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.video.films import find_frames
from pipeline.windows.encode import decoded_anew, encode_shards, encoder_of
from pipeline.windows.given import StatesFrom, TextsFrom, conditioned
from pipeline.windows.of_tokens import reconstruction_psnr
from pipeline.windows.plan import Plan, TokenizeConfig, WindowReader, plan_windows
from pipeline.windows.verify import refuse_damaged, verify_frames
from stages.conditioned import conditions_options, files_of
from stages.fitting import open_tokenizer
from stages.frame_options import frames_options
from stages.launch import Launch, fabric_options
from stages.options import (
    FILE,
    PLACE_OUT,
    as_stored_option,
    overwrite_option,
    params_options,
    spare_cores,
    verify_option,
    workers_option,
)
from tokenizer import Tokenizer, tokens_identity

CHECKED_WINDOWS = 32
"""Windows that are decoded again at the end, for the PSNR."""
ADVICE = (
    "All shards without them are made; mend them, and the same command goes on with the rest. "
    "Or leave out their videos, and give --update."
)
"""On damaged frames."""


@dataclass(frozen=True)
class Tokenized:
    """What `tokenize` did and how well."""

    counts: dict[str, int]
    encoded: int
    """Windows encoded in this call."""
    taken: int
    """Windows whose tokens were taken over from what was there, because frames changed."""
    rejected: list[Rejected]
    notes: list[str]
    """What one might not expect of the frames, and what is known of labels, captions and states."""
    use: CodebookUse
    psnr: float


def tokenize(
    frames: Frames,
    tokenizer: Path,
    out: Place,
    config: TokenizeConfig,
    *,
    fabric: Fabric,
    skip_broken: bool = False,
    workers: int = 0,
    verify: bool = False,
    overwrite: bool = False,
    update: bool = False,
    labels: TextsFrom | None = None,
    captions: TextsFrom | None = None,
    states: StatesFrom | None = None,
) -> Tokenized | None:
    """Encodes every window of every video once; goes on where an earlier call was cut off.

    Process r of R encodes each R-th of the shards that are missing, and `workers` more processes
    of each decode frames ahead. `verify` decodes all frames first; with `update` a store of other
    frames is brought to what they are now. `labels`, `captions` and `states` are kept with them.
    Raises PipelineError if the tokenizer does not fit the frames or `out` holds something else; if
    frames cannot be used, when all shards without them are made: the first process only, which
    alone returns what was made.
    """
    model = open_tokenizer(tokenizer, config, str(fabric.device))
    found = find_frames(frames, skip_broken=skip_broken)
    plan = plan_windows(found.videos, config)
    if verify and not verify_frames(found.videos, plan, config, fabric):
        return None
    source = list_frames(found.videos, frames)
    rate = config.fps or recorded_rate(folder_of(frames)) or found.rate(at_least=config.span)
    info = _store_info(model, plan, source_of(source), config, rate)
    texts = {LABEL: labels, CAPTION: captions}
    info, given = conditioned(info, plan.table, found.videos, frames, texts=texts, states=states)
    if fabric.is_global_zero and (said := decoded_anew(found.videos, config.size)):
        print(said, file=sys.stderr, flush=True)
    with claim_shards(
        *(out, info, given.plan),
        fabric=fabric,
        batch_size=config.batch_size,
        what="tokenize",
        unit="window",
        source=source,
        overwrite=overwrite,
        update=update,
    ) as share:
        done = encode_shards(
            *(share.writer, share.shards, found.videos, encoder_of(model, half=info.half)),
            batch_size=config.batch_size,
            workers=workers,
            advance=share.advance,
            known=share.known,
            states=given.states,
        )
    if not refuse_damaged(gathered(fabric, done.damaged), ADVICE, fabric):
        return None
    taken = share.kept + summed(fabric, done.taken)
    if not fabric.is_global_zero:
        return None
    made = _measured(out, model, found, plan, config, share.kept + share.total, taken)
    return replace(made, notes=[*made.notes, *given.said])


def _store_info(
    model: Tokenizer, plan: Plan, source: str, config: TokenizeConfig, rate: float | None
) -> StoreInfo:
    """Says what the tokens are: everything that they depend on, and the size of their windows."""
    splits = [split for split in ("train", "test") if plan.num_windows(split)]
    return StoreInfo(
        tokenizer=tokens_identity(model),
        codebook_size=model.config.codebook_size,
        grid=model.config.grid(config.frames, *sides(config.size)),
        source=source,
        counts={split: plan.num_windows(split) for split in splits},
        fps=None if rate is None else rate / config.stride,
        **config.in_store(causal=model.config.causal),
    )


def _measured(
    out: Place,
    model: Tokenizer,
    found: FrameFolder,
    plan: Plan,
    config: TokenizeConfig,
    windows: int,
    taken: int,
) -> Tokenized:
    """Measures the finished store, of which `windows` were made now, `taken` over included."""
    store, reader = TokenStore(out), WindowReader(found.videos, config, cache_bytes=0)
    counts = np.sum([store.token_counts(split) for split in store.splits], axis=0)
    return Tokenized(
        counts=store.info.counts,
        encoded=windows - taken,
        taken=taken,
        rejected=found.rejected + plan.rejected,
        notes=found.notes(as_stored=config.as_stored),
        use=codebook_use(counts),
        psnr=reconstruction_psnr(store, reader, partial(decode_tokens, model), CHECKED_WINDOWS),
    )


@click.command("tokenize")
@frames_options
@click.option("--tokenizer", type=FILE, required=True, help="Frozen tokenizer, .safetensors.")
@click.option("--out", type=PLACE_OUT, required=True, help="Token store to make or to go on with.")
@conditions_options()
@as_stored_option("tokenize")
@params_options
@fabric_options
@workers_option
@verify_option
@click.option(
    "--update",
    is_flag=True,
    help="Bring a store of other frames, labels, captions or states to what they are now; tokens "
    "of the same frames are taken over.",
)
@overwrite_option
def command(
    frames: Frames,
    skip_broken: bool,
    tokenizer: Path,
    out: Place,
    labels: TextsFrom | None,
    captions: TextsFrom | None,
    states: StatesFrom | None,
    as_stored: tuple[str, ...],
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    workers: int | None,
    verify_frames: bool,
    update: bool,
    overwrite: bool,
) -> None:
    """Encode every window of every video, once.

    Makes a token store that any number of experiments may read. Stopped at any moment, the same
    command goes on with the shards that are missing, on any number of processes. A batch that does
    not fit the memory is halved. Values: section `tokenize` of the params file.

    Videos in tars of others need no `extract`: all their frames are read as they are. Another rate,
    filters, tiles and a held-out end need it.

    Damaged frames stop only the shards that hold them, and are named at the end: once they are
    mended, the same command encodes those. A finished store whose frames, labels, captions or
    states change, or that gets further videos, is left alone until --update brings it up to date.

    \b
    Example:
      mebt tokenize --frames frames --tokenizer models/fish-64.safetensors --out tokens
      mebt tokenize --frames frames --tokenizer t.safetensors --out s3://bucket/tokens --devices 8
      mebt tokenize --frames frames --tokenizer t.safetensors --out tokens --update
      mebt tokenize --frames frames --tokenizer t.safetensors --out tokens --labels labels.csv
      mebt tokenize --frames 'shards/{000..041}.tar' --tokenizer t.safetensors --out tokens
    """
    keep_apart(out, *places_of(frames), tokenizer, params, *files_of(labels, captions, states))
    config = load_section(params, "tokenize", TokenizeConfig, (*overrides, *as_stored))
    fabric = launch()
    if workers is None:
        nodes = getattr(fabric.strategy, "num_nodes", 1)
        workers = spare_cores(str(fabric.device), fabric.world_size // nodes)
    tokenized = tokenize(
        frames,
        tokenizer,
        out,
        config,
        fabric=fabric,
        skip_broken=skip_broken,
        workers=workers,
        verify=verify_frames,
        overwrite=overwrite,
        update=update,
        labels=labels,
        captions=captions,
        states=states,
    )
    if tokenized is None:  # The first process says it.
        return
    for note in tokenized.notes:
        click.echo(note)
    for rejected in tokenized.rejected[:5]:
        click.echo(f"rejected {rejected.name}: {rejected.reason}")
    if len(tokenized.rejected) > 5:
        click.echo(f"rejected {len(tokenized.rejected) - 5} more")
    use = tokenized.use
    click.echo(
        f"codebook: {use.share:.1%} used, {use.dead} dead, perplexity {use.perplexity:.1f}, "
        f"{use.bits:.2f} bits per token; reconstruction PSNR {tokenized.psnr:.1f} dB"
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in tokenized.counts.items())
    done = f"encoded {tokenized.encoded:,} now" if tokenized.encoded else "nothing to do"
    if tokenized.taken:
        done = f"took over {tokenized.taken:,}, encoded {tokenized.encoded:,} now"
    click.echo(f"{out}: {counts} windows; {done}")
