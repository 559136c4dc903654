"""Every artefact of a project -> one HTML page."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors import safe_open

from mebt import model_metadata, weights_identity
from pipeline.config import load_params
from pipeline.errors import PipelineError, TokenStoreError, user_errors
from pipeline.evaluation.copying import decoded_pair
from pipeline.evaluation.sets import one_window_each, real_halves, window_places
from pipeline.frames.scan import FrameFolder, Rejected, scan_frames
from pipeline.pixels import to_bytes
from pipeline.rates import playing_rate
from pipeline.report.artefacts import (
    check_measured,
    frame_artefacts,
    lede,
    read_extracted,
    sample_artefact,
    times,
    token_artefact,
    too_short,
)
from pipeline.report.report import Artefact, Clip, Contents, NearestPair, Pair, make_report
from pipeline.storage.files import keep_apart, read_json, read_text, write_text
from pipeline.storage.places import Place
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore, check_tokenizer
from pipeline.training.log import FILE as LOG
from pipeline.training.log import read_log
from pipeline.training.previews import Tokens, read_previews
from pipeline.windows.of_tokens import window_reader
from stages.options import FILE, FOLDER, OUT, PLACE
from tokenizer import VQGAN, identity, load_tokenizer, tokenizer_metadata

SHOWN_PAIRS = 8
SHOWN_SAMPLES = 32
"""Samples shown, those beside the pairs included."""
SHOWN_PREVIEWS = 8
"""Steps of training whose previews are shown, the first and the last included."""
DECODED_AT_ONCE = 4


def collect(
    tokens: Place,
    *,
    frames: Place | None = None,
    samples: Place | None = None,
    run: Path | None = None,
    tokenizer: Path | None = None,
    tokenizer_log: Path | None = None,
    metrics: Path | None = None,
    params: Path | None = None,
) -> Contents:
    """Reads what a report shows; what is not given is left out.

    Raises PipelineError if something given cannot be read, or does not belong to the tokens.
    """
    store = TokenStore(tokens)
    drawn = None if samples is None else TokenStore(samples)
    if drawn is not None and drawn.info.tokenizer != store.info.tokenizer:
        raise TokenStoreError(
            f"{samples} has tokens of tokenizer {drawn.info.tokenizer}, but {tokens} of "
            f"{store.info.tokenizer}. Give the tokens that the samples' model was trained on."
        )
    model = None if tokenizer is None else _open_tokenizer(tokenizer, store)
    split = "test" if "test" in store.splits else store.splits[0]
    artefacts: list[Artefact] = []
    rejected: list[Rejected] = []
    pairs: list[Pair] = []
    shown: list[Clip] = []
    nearest: list[NearestPair] = []
    if frames is not None:
        found = scan_frames(frames)
        extracted = read_extracted(frames)
        artefacts += frame_artefacts(extracted, frames, found)
        rejected = [*extracted.rejected, *found.rejected, *too_short(found, store)]
        if model is not None:
            pairs = _pairs(model, frames, found, store, split)
    if tokenizer is not None and model is not None:
        artefacts.append(_tokenizer_artefact(tokenizer, model))
    artefacts.append(token_artefact(store))
    previews: dict[int, list[Clip]] = {}
    if run is not None:
        kept = read_previews(run)
        artefacts.append(_model_artefact(run, kept))
        if model is not None:
            previews = _previews(model, run, kept, store)
    if drawn is not None:
        artefacts.append(sample_artefact(drawn))
        if model is not None:
            shown = _decode(model, drawn.read(drawn.splits[0], 0, SHOWN_SAMPLES))
    evaluation = {} if metrics is None else read_json(metrics, PipelineError, "evaluation")
    check_measured(evaluation, artefacts, metrics)
    if drawn is not None and model is not None:
        nearest = _nearest(model, store, drawn, evaluation)
    return Contents(
        lede=lede(store, drawn),
        fps=_fps(params, store.info if drawn is None else drawn.info),
        samples=shown,
        pairs=pairs,
        pairs_split=split,
        previews=previews,
        evaluation=evaluation,
        nearest=nearest,
        training_log=[] if run is None else read_log(run / LOG),
        tokenizer_log=[] if tokenizer_log is None else read_log(tokenizer_log),
        artefacts=artefacts,
        rejected=rejected,
        params="" if params is None else read_text(params),
    )


def _open_tokenizer(path: Path, store: TokenStore) -> VQGAN:
    with user_errors():
        model = load_tokenizer(path)
    check_tokenizer(store, path, identity(model))
    return model


def _fps(params: Path | None, shown: StoreInfo) -> float:
    """Returns what videos play at, as `mebt decode` plays them."""
    asked = {} if params is None else load_params(params).get("decode", {})
    fps = asked.get("fps")
    is_rate = isinstance(fps, int | float) and fps > 0
    return playing_rate(fps if is_rate else None, shown.fps)[0]


def _decode(model: VQGAN, tokens: np.ndarray) -> list[Clip]:
    clips: list[Clip] = []
    for start in range(0, len(tokens), DECODED_AT_ONCE):
        part = torch.from_numpy(tokens[start : start + DECODED_AT_ONCE])
        clips += list(to_bytes(model.decode(part)))
    return clips


def _pairs(
    model: VQGAN, frames: Place, found: FrameFolder, store: TokenStore, split: str
) -> list[Pair]:
    """Decodes windows of as many different videos as there are."""
    reader = window_reader(found.videos, frames, store)
    plan = store.plan(split)
    halves = real_halves(store, split, limit=SHOWN_PAIRS // 2, seed=0)
    pairs = []
    for row in sorted(halves[0] + halves[1]):
        video, first = (plan[column][row].as_py() for column in ("video", "first_frame"))
        (decoded,) = _decode(model, store.read(split, row, row + 1))
        real = reader.read(split, video, first)
        pairs.append(Pair(name=f"{video}, frame {first}", real=real, reconstruction=decoded))
    return pairs


def _nearest(
    model: VQGAN, store: TokenStore, drawn: TokenStore, evaluation: Mapping[str, Any]
) -> list[NearestPair]:
    """Decodes the samples nearest to training, and the training windows that they are near to."""
    pairs = []
    for found in evaluation.get("copying", {}).get("pairs", []):
        number, row = found["sample"], found["row"]
        sample = drawn.read(drawn.splits[0], number, number + 1)
        places = window_places(store, drawn)
        (window,) = one_window_each(sample, store.grid[0], number, places)
        (other,) = store.read("train", row, row + 1)
        clips = decoded_pair(window, other, found["shift"], partial(_decode, model))
        name = f"new video {number + 1}; {found['video']}, frame {found['first_frame']}"
        pairs.append(
            NearestPair(name=name, sample=clips[0], training=clips[1], distance=found["distance"])
        )
    return pairs


def _previews(
    model: VQGAN, run: Path, kept: Mapping[int, Tokens], store: TokenStore
) -> dict[int, list[Clip]]:
    """Decodes previews of steps evenly spread over those there are.

    Raises TokenStoreError if they are of another tokenizer than the store's.
    """
    if not kept:
        return {}
    with user_errors():
        made_for = model_metadata(run / "model.safetensors").get("tokenizer")
    if made_for != store.info.tokenizer:
        raise TokenStoreError(
            f"{run} has previews of tokenizer {made_for}, but {store.root} has tokens of "
            f"{store.info.tokenizer}. Give the tokens that the run was trained on."
        )
    steps = list(kept)
    places = np.linspace(0, len(steps) - 1, min(SHOWN_PREVIEWS, len(steps))).round().astype(int)
    return {steps[place]: _decode(model, kept[steps[place]]) for place in places}


def _tokenizer_artefact(path: Path, model: VQGAN) -> Artefact:
    config = model.config
    steps = tokenizer_metadata(path).get("steps", "")
    facts = [
        (
            "codebook",
            f"{config.codebook_size:,} vectors of {config.embedding_dim}"
            + (f", of {times(config.levels)} levels" if config.levels else ""),
        ),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
    ]
    if steps.isdecimal():
        facts.append(("trained", f"{int(steps):,} steps"))
    return Artefact(
        name="Tokenizer",
        about="A 3D VQGAN: each block of "
        f"{times(config.downsample)} (frames, height, width) pixels becomes a token."
        + (" The first frame has tokens of its own." if config.causal else ""),
        facts=facts,
        identity=identity(model),
    )


def _model_artefact(run: Path, previews: Mapping[int, Tokens]) -> Artefact:
    path = run / "model.safetensors"
    with user_errors():
        metadata = model_metadata(path)
    config = json.loads(metadata["config"])
    with safe_open(path, framework="pt") as file:  # Shapes only: a model may be large.
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    facts = [
        ("layers", f"{len(config['layers'])} of width {config['width']}"),
        ("latent tokens", f"{config['num_latents']}"),
        ("parameters", f"{sum(map(math.prod, shapes)):,}"),
    ]
    if "step" in metadata:
        facts.append(("trained", f"{int(metadata['step']):,} steps"))
    facts.append(("previews", f"of {len(previews):,} steps" if previews else "none kept"))
    return Artefact(
        name="Transformer",
        about="MeBT: latent tokens read the tokens that are shown, and predict the hidden ones.",
        facts=facts,
        identity=weights_identity(path),
    )


@click.command("report")
@click.option("--tokens", type=PLACE, required=True, help="Token store of the real videos.")
@click.option(
    "--frames", type=PLACE, help="Frames that the tokens were made from: a folder, or a bucket."
)
@click.option("--samples", type=PLACE, help="Token store of samples.")
@click.option("--run", type=FOLDER, help="Run that trained the model.")
@click.option("--tokenizer", type=FILE, help="Tokenizer that made the tokens, .safetensors.")
@click.option("--tokenizer-log", type=FILE, help="The metrics.jsonl of fit-tokenizer.")
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
    keep_apart(out, tokens, *given.values())
    page = make_report(collect(tokens, **given))
    write_text(out, page)
    click.echo(f"{out}: {len(page.encode()) / 1e6:.1f} MB")
