"""Every artefact of a project -> one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from mebt import model_metadata
from mebt.weights import MODEL_FILE
from pipeline.config import load_params
from pipeline.errors import PipelineError, TokenStoreError, user_errors
from pipeline.evaluation.written import read_evaluation
from pipeline.frames.given import Frames, places_of
from pipeline.pixels import decode_tokens
from pipeline.rates import playing_rate
from pipeline.report.artefacts import (
    Artefact,
    Footage,
    check_measured,
    frame_artefacts,
    lede,
    read_footage,
    sample_artefact,
    token_artefact,
    unused_files,
)
from pipeline.report.clips import (
    Clip,
    Decode,
    first_samples,
    nearest_pairs,
    preview_clips,
    reconstructed_pairs,
)
from pipeline.report.curves import in_a_row
from pipeline.report.report import Contents, make_report
from pipeline.storage.files import keep_apart, read_text, write_text
from pipeline.storage.places import Place
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import check_tokenizer
from pipeline.training.log import FILE as LOG
from pipeline.training.log import read_log
from pipeline.training.previews import Tokens, read_previews
from pipeline.windows.of_tokens import window_reader
from stages.described import describe_model, describe_tokenizer
from stages.frame_options import FRAMES
from stages.options import FILE, FOLDER, OUT, PLACE
from tokenizer import Tokenizer, load_tokenizer, tokens_identity

DECODED_AT_ONCE = 4


def collect(
    tokens: Place,
    *,
    frames: Frames | None = None,
    samples: Place | None = None,
    run: Path | None = None,
    tokenizer: Path | None = None,
    tokenizer_logs: Sequence[Path] = (),
    metrics: Path | None = None,
    params: Path | None = None,
) -> Contents:
    """Reads what a report shows; what is not given is left out.

    Of several `tokenizer_logs` each is of a training that went on from the one before.

    Raises PipelineError if something given cannot be read, or does not belong to the tokens.
    """
    store = TokenStore(tokens)
    drawn = None if samples is None else _open_samples(samples, store)
    model = None if tokenizer is None else _open_tokenizer(tokenizer, store)
    footage = None if frames is None else read_footage(frames)
    previews = {} if run is None else read_previews(run)
    evaluation = {} if metrics is None else read_evaluation(metrics, PipelineError)
    artefacts: list[Artefact] = [] if footage is None else [*frame_artefacts(footage)]
    if tokenizer is not None and model is not None:
        artefacts.append(describe_tokenizer(tokenizer, model))
    artefacts.append(token_artefact(store))
    if run is not None:
        artefacts.append(describe_model(run / MODEL_FILE, len(previews)))
    if drawn is not None:
        artefacts.append(sample_artefact(drawn))
    check_measured(evaluation, artefacts, metrics)
    contents = Contents(
        lede=lede(store, drawn),
        fps=_fps(params, store.info if drawn is None else drawn.info),
        evaluation=evaluation,
        training_log=[] if run is None else read_log(run / LOG),
        codebook_size=store.codebook_size,
        tokenizer_log=in_a_row([read_log(log) for log in tokenizer_logs]),
        artefacts=artefacts,
        rejected=[] if footage is None else unused_files(footage, store),
        params="" if params is None else read_text(params),
    )
    if model is None:
        return contents
    if run is not None and previews:
        _check_previews(run, store)
    return _with_clips(contents, partial(_decode, model), store, drawn, footage, previews)


def _open_samples(path: Place, store: TokenStore) -> TokenStore:
    samples = TokenStore(path)
    if samples.info.tokenizer != store.info.tokenizer:
        raise TokenStoreError(
            f"{path} has tokens of tokenizer {samples.info.tokenizer}, but {store.root} of "
            f"{store.info.tokenizer}. Give the tokens that the samples' model was trained on."
        )
    return samples


def _open_tokenizer(path: Path, store: TokenStore) -> Tokenizer:
    with user_errors():
        model = load_tokenizer(path)
    check_tokenizer(store, path, tokens_identity(model))
    return model


def _check_previews(run: Path, store: TokenStore) -> None:
    """Raises TokenStoreError if previews are of another tokenizer than the store's."""
    with user_errors():
        tokenizer = model_metadata(run / MODEL_FILE).get("tokenizer")
    if tokenizer != store.info.tokenizer:
        raise TokenStoreError(
            f"{run} has previews of tokenizer {tokenizer}, but {store.root} has tokens of "
            f"{store.info.tokenizer}. Give the tokens that the run was trained on."
        )


def _decode(model: Tokenizer, tokens: np.ndarray) -> list[Clip]:
    clips: list[Clip] = []
    for start in range(0, len(tokens), DECODED_AT_ONCE):
        clips += list(decode_tokens(model, tokens[start : start + DECODED_AT_ONCE]))
    return clips


def _with_clips(
    contents: Contents,
    decode: Decode,
    store: TokenStore,
    drawn: TokenStore | None,
    footage: Footage | None,
    previews: Mapping[int, Tokens],
) -> Contents:
    """Adds everything that a tokenizer has to decode."""
    split = "test" if "test" in store.splits else store.splits[0]
    contents = replace(contents, previews=preview_clips(previews, decode))
    if footage is not None:
        read = window_reader(footage.folder, footage.place, store).pixels
        pairs = reconstructed_pairs(store, split, read, decode)
        contents = replace(contents, pairs=pairs, pairs_split=split)
    if drawn is not None:
        copying = contents.evaluation.get("copying") or {}
        nearest = nearest_pairs(store, drawn, copying, decode)
        contents = replace(contents, samples=first_samples(drawn, decode), nearest=nearest)
    return contents


def _fps(params: Path | None, shown: StoreInfo) -> float:
    """Returns what videos play at, as `mebt decode` plays them."""
    asked = {} if params is None else load_params(params).get("decode", {})
    fps = asked.get("fps")
    is_rate = isinstance(fps, int | float) and fps > 0
    return playing_rate(fps if is_rate else None, shown.fps)[0]


@click.command("report")
@click.option("--tokens", type=PLACE, required=True, help="Token store of the real videos.")
@click.option(
    "--frames",
    type=FRAMES,
    help="Frames that the tokens were made from, as `tokenize` was given them.",
)
@click.option("--samples", type=PLACE, help="Token store of samples.")
@click.option("--run", type=FOLDER, help="Run that trained the model.")
@click.option("--tokenizer", type=FILE, help="Tokenizer that made the tokens, .safetensors.")
@click.option(
    "--tokenizer-log",
    "tokenizer_logs",
    type=FILE,
    multiple=True,
    help="The metrics.jsonl of fit-tokenizer; again for each training that went on from it.",
)
@click.option("--metrics", type=FILE, help="What `mebt evaluate` wrote.")
@click.option("--params", type=FILE, help="Params file, shown as it is.")
@click.option("--out", type=OUT, required=True, help="HTML file to write.")
def command(tokens: Place, out: Path, **given: Any) -> None:
    """Show everything on one HTML page.

    Real clips, what tokens keep of them and new videos, playing side by side; how both models
    learned; every number with what it means; what was made from what. The page holds all it
    shows, so it can be read offline and sent around. What is not given is left out.

    \b
    Example:
      mebt report --frames frames --tokens tokens --samples samples/tokens --run run \\
        --tokenizer models/fish-64.safetensors --metrics metrics.json --params params.yaml \\
        --out report.html
    """
    frames, logs = given.pop("frames"), given.pop("tokenizer_logs")
    keep_apart(out, tokens, *places_of(frames), *logs, *given.values())
    page = make_report(collect(tokens, frames=frames, tokenizer_logs=logs, **given))
    write_text(out, page)
    click.echo(f"{out}: {len(page.encode()) / 1e6:.1f} MB")
