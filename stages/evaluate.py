"""tokens, samples, model, tokenizer, frames -> metrics.json: how good they are, how measured."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from einops import rearrange

from mebt import load_model, model_metadata, weights_identity
from mebt.objective import held_out_means
from pipeline.config import load_section
from pipeline.errors import CheckpointError, user_errors
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.copying import PIXELS, measure_copying, verdict
from pipeline.evaluation.fvd import (
    KEYS,
    Network,
    Runs,
    fvd_protocol,
    measure_fvd,
    open_i3d,
    plan_runs,
)
from pipeline.evaluation.i3d import HOW_TO_GET
from pipeline.evaluation.numbers import Evaluation
from pipeline.evaluation.sets import (
    Tokens,
    Videos,
    Windows,
    batches,
    choose_windows,
    measure_pictures,
    measure_tokens,
    skip_pictures,
)
from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_bytes, to_model
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.seeds import step_seed
from pipeline.storage.files import keep_apart, sha256_file, write_json
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import check_tokenizer
from pipeline.windows.of_tokens import window_reader
from pipeline.windows.plan import WindowReader
from stages.options import FILE, FOLDER, OUT, PLACE, device_option, params_options
from tokenizer import VQGAN, identity, load_tokenizer
from tokenizer.perceptual import HOW_TO_GET as HOW_TO_GET_LPIPS
from tokenizer.perceptual import LPIPS, SMALLEST, load_lpips

MODEL = "model.safetensors"
CACHE = "fvd-cache"


def evaluate(
    tokens: Place,
    config: EvaluateConfig,
    *,
    samples: Place | None = None,
    run: Path | None = None,
    tokenizer: Path | None = None,
    frames: Place | None = None,
    i3d: Path | None = None,
    lpips: Sequence[Path] = (),
    cache: Path | None = None,
    published_rounding: bool = False,
    device: str = "cpu",
) -> Evaluation:
    """Measures whatever of the artefacts is given; `not_computed` says what was not, and why.

    `lpips` are files of published weights; `cache` is a folder for what I3D sees in real videos;
    `published_rounding` drops fractions when FVD's pictures become bytes. Raises PipelineError if
    two artefacts do not belong together, or if there is less than a named protocol asks for.
    """
    config = config.resolved()
    store = TokenStore(tokens)
    drawn = None if samples is None else TokenStore(samples)
    network = None
    if i3d is not None:
        network = open_i3d(i3d, cache=cache, truncate=published_rounding, device=device)
    found = Evaluation()
    perceptual = _open_lpips(found, lpips, store, device)
    windows = choose_windows(
        store, drawn, split=config.split, limit=config.num_videos, seed=config.seed
    )
    runs = plan_runs(
        store,
        drawn,
        split=config.split,
        num_videos=config.num_videos,
        runs=config.runs,
        seed=config.seed,
        protocol=config.protocol,
    )
    identities: dict[str, str | list[str]] = {"tokens": store.fingerprint}
    if drawn is not None:
        identities["samples"] = drawn.fingerprint
    measure_tokens(found, windows)
    if run is None:
        keys = [f"token_{k}_mask_{p}" for k in ("loss", "accuracy") for p in config.percents]
        found.skip(keys, "no --run was given")
    else:
        _measure_model(found, run / MODEL, windows, config, device)
        identities["model"] = weights_identity(run / MODEL)
    model, fvd = None, {}
    if tokenizer is None or frames is None:
        why = f"no {'--tokenizer' if tokenizer is None else '--frames'} was given"
        skip_pictures(found, why)
        found.skip(["lpips", *PIXELS, *(KEYS if network else ())], why)
    else:
        model = _open_tokenizer(tokenizer, store, device)
        identities["tokenizer"] = identity(model)
        if perceptual is not None:
            identities["lpips"] = sorted(map(sha256_file, lpips))
        reader = window_reader(scan_frames(frames).videos, frames, store)
        _measure_pictures(found, windows, reader, model, perceptual, config)
        if network is not None:
            fvd = _measure_fvd(found, runs, reader, model, network, config)
    if network is None:
        found.skip(KEYS, f"needs the I3D network, and no --i3d was given: {HOW_TO_GET}")
    decode = None if model is None else partial(_decode, model)
    found.protocol = {
        **windows.protocol(),
        "num_videos_asked": config.num_videos,
        "seed": config.seed,
        "mask_ratios": list(config.mask_ratios),
        "identities": identities,
        "fvd": fvd,
        "copying": measure_copying(found, windows, drawn, decode=decode, device=device),
    }
    return found


def _measure_pictures(
    found: Evaluation,
    windows: Windows,
    reader: WindowReader,
    model: VQGAN,
    perceptual: LPIPS | None,
    config: EvaluateConfig,
) -> None:
    """Measures reconstructions, and samples beside real videos."""
    measure_pictures(
        found,
        windows,
        read=partial(reader.read, config.split),
        decode=partial(_decode, model),
        features=partial(_features, model),
        perceptual=None if perceptual is None else partial(_frame_differences, perceptual),
        batch_size=config.batch_size,
    )


def _measure_fvd(
    found: Evaluation,
    runs: Runs,
    reader: WindowReader,
    model: VQGAN,
    network: Network,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Measures FVD and KVD; returns how."""
    measure_fvd(
        found,
        runs,
        network,
        read=partial(reader.read, config.split),
        decode=partial(_decode, model, truncate=network.truncate),
        batch_size=config.batch_size,
        hop=config.fvd_hop,
    )
    return fvd_protocol(runs, network, name=config.protocol, hop=config.fvd_hop)


def _measure_model(
    found: Evaluation, path: Path, windows: Windows, config: EvaluateConfig, device: str
) -> None:
    """Measures how well held-out tokens are guessed at each mask ratio."""
    store = windows.store
    with user_errors():
        made_with = model_metadata(path).get("tokenizer")
        model = load_model(path, device)
    if made_with and store.info.tokenizer and made_with != store.info.tokenizer:
        raise CheckpointError(
            f"{path} was trained on tokens of tokenizer {made_with}, but those of {store.root} are "
            f"of {store.info.tokenizer}. Give the tokens that it was trained on."
        )
    if (model.config.grid, model.config.codebook_size) != (store.grid, store.codebook_size):
        raise CheckpointError(
            f"{path} was trained on a grid {model.config.grid} of {model.config.codebook_size} "
            f"tokens, but {store.root} has {store.grid} of {store.codebook_size}."
        )
    tokens = torch.from_numpy(windows.held_out()).flatten(1)
    means = held_out_means(
        model,
        lambda which: (
            tokens[part].to(device) for part in batches(len(tokens), config.batch_size, which)
        ),
        mask_ratios=config.mask_ratios,
        generator=lambda hidden: torch.Generator().manual_seed(step_seed(config.seed, hidden, 0)),
    )
    for hidden, (loss, accuracy) in means.items():
        found.add({f"token_loss_mask_{hidden}": loss, f"token_accuracy_mask_{hidden}": accuracy})


def _open_tokenizer(path: Path, store: TokenStore, device: str) -> VQGAN:
    with user_errors():
        model = load_tokenizer(path, device)
    check_tokenizer(store, path, identity(model))
    return model


def _open_lpips(
    found: Evaluation, files: Sequence[Path], store: TokenStore, device: str
) -> LPIPS | None:
    """Opens LPIPS, or says why it is not measured."""
    if not files:
        found.skip(["lpips"], f"needs weights, and no --lpips was given: {HOW_TO_GET_LPIPS}")
        return None
    with user_errors():
        tensors = {str(file): state_tensors(file, load_content(file)) for file in files}
        model = load_lpips(tensors, device)
    if store.info.size is not None and store.info.size < SMALLEST:
        found.skip(["lpips"], f"needs frames of {SMALLEST} pixels a side, got {store.info.size}")
        return None
    return model


def _frame_differences(lpips: LPIPS, *videos: Videos) -> np.ndarray:
    """Returns the mean LPIPS of the frames of each of two batches of videos, one row by one."""
    device = next(lpips.parameters()).device
    x, y = (rearrange(to_model(v).to(device), "b c t h w -> (b t) c h w") for v in videos)
    distances = rearrange(lpips.frame_distances(x, y), "(b t) -> b t", b=len(videos[0]))
    return distances.mean(1).cpu().numpy()


def _decode(tokenizer: VQGAN, tokens: Tokens, *, truncate: bool = False) -> Videos:
    device = next(tokenizer.parameters()).device
    return to_bytes(tokenizer.decode(torch.from_numpy(tokens).to(device)), truncate=truncate)


@torch.no_grad()
def _features(tokenizer: VQGAN, videos: Videos) -> np.ndarray:
    device = next(tokenizer.parameters()).device
    return tokenizer.features(to_model(videos).to(device)).cpu().numpy()


@click.command("evaluate")
@click.option("--tokens", type=PLACE, required=True, help="Token store of the real videos.")
@click.option("--samples", type=PLACE, help="Token store of samples.")
@click.option("--run", type=FOLDER, help="Run whose model is measured on held-out tokens.")
@click.option("--tokenizer", type=FILE, help="Tokenizer that made the tokens, .safetensors.")
@click.option(
    "--frames", type=PLACE, help="Frames that the tokens were made from: a folder, or a bucket."
)
@click.option("--i3d", type=FILE, help="Published I3D weights (i3d_pretrained_400.pt), for FVD.")
@click.option(
    "--lpips",
    type=FILE,
    multiple=True,
    help="Published weights of LPIPS on VGG16; give it once for each file that they lie in.",
)
@click.option(
    "--cache",
    type=OUT,
    help="Folder that keeps what I3D sees in real videos; fvd-cache beside OUT by default.",
)
@click.option(
    "--published-rounding",
    is_flag=True,
    help="Drop fractions when FVD's pictures become bytes, as published; else to the nearest.",
)
@click.option("--out", type=OUT, required=True, help="JSON file to write.")
@params_options
@device_option
def command(
    tokens: Place,
    samples: Place | None,
    run: Path | None,
    tokenizer: Path | None,
    frames: Place | None,
    i3d: Path | None,
    lpips: tuple[Path, ...],
    cache: Path | None,
    published_rounding: bool,
    out: Path,
    params: Path,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Measure reconstructions, the model and its samples.

    Measures what it is given: with --tokenizer and --frames how close reconstructions come to
    their videos, with --run how well held-out tokens are guessed, with --samples how far new
    videos are from real ones, beside how far real ones are from one another, and whether they are
    copies of training windows; with --i3d FVD and KVD too, with --lpips how different
    reconstructions look. OUT holds the numbers, the protocol that made them, and what was not
    computed and why. Values: section `evaluate` of the params file; evaluate.protocol=mebt-16f or
    mebt-128f measures as published.

    \b
    Example:
      mebt evaluate --tokens tokens --samples samples/tokens --run run \\
        --tokenizer models/fish-64.safetensors --frames frames --out metrics.json
    """
    keep_apart(out, tokens, samples, run, tokenizer, frames, i3d, *lpips, params)
    config = load_section(params, "evaluate", EvaluateConfig, overrides)
    found = evaluate(
        tokens,
        config,
        samples=samples,
        run=run,
        tokenizer=tokenizer,
        frames=frames,
        i3d=i3d,
        lpips=lpips,
        cache=out.parent / CACHE if cache is None else cache,
        published_rounding=published_rounding,
        device=device,
    )
    write_json(out, asdict(found))
    for key, value in found.metrics.items():
        click.echo(f"{key:32s} {value:.6g}")
    if found.copying:
        click.echo(verdict(asdict(found)))
    for why in dict.fromkeys(found.not_computed.values()):
        keys = [key for key, reason in found.not_computed.items() if reason == why]
        click.echo(f"not computed: {', '.join(keys)}: {why}")
    asked = config.resolved().num_videos
    if (count := found.protocol["num_videos"]) < asked:
        click.echo(f"compared {count} videos on each side, not {asked}: there are no more")
    click.echo(f"{out}: {len(found.metrics)} numbers")
