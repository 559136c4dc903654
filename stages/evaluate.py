"""tokens, samples, model, tokenizer, frames -> metrics.json: how good they are, how measured."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click

from mebt import load_model, model_metadata, weights_identity
from mebt.weights import MODEL_FILE
from pipeline.config import load_section
from pipeline.errors import user_errors
from pipeline.evaluation.c2st import measure_c2st
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.copying import measure_copying, verdict
from pipeline.evaluation.fvd import measure_fvd, open_i3d, plan_repeats
from pipeline.evaluation.measure import measure_model, measure_pictures, measure_tokens
from pipeline.evaluation.numbers import Evaluation, Missing
from pipeline.evaluation.pictures import FrameDistances, Pictures
from pipeline.evaluation.sets import choose_windows
from pipeline.frames.given import Frames, places_of
from pipeline.pixels import decode_tokens
from pipeline.storage.files import keep_apart, sha256_file, write_json
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import TokensOf, check_same_tokens, check_tokenizer
from pipeline.video.films import find_frames
from pipeline.windows.of_tokens import window_reader
from stages.conditions import StoreConditions, listed
from stages.fitting import open_distances
from stages.frame_options import FRAMES
from stages.held_out import means_of
from stages.options import FILE, FOLDER, OUT, PLACE, device_option, params_options
from tokenizer import identity, load_tokenizer, tokens_identity

CACHE = "fvd-cache"


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """What is measured beside the tokens of real videos; what is not given is not measured."""

    samples: Place | None = None
    run: Path | None = None
    tokenizer: Path | None = None
    frames: Frames | None = None
    i3d: Path | None = None
    lpips: tuple[Path, ...] = ()
    """Files of published weights."""

    def places(self) -> list[Place | None]:
        """Lists where all of them are."""
        frames = places_of(self.frames)
        return [self.samples, self.run, self.tokenizer, *frames, self.i3d, *self.lpips]


def evaluate(
    tokens: Place,
    given: Artefacts,
    config: EvaluateConfig,
    *,
    cache: Path | None = None,
    published_rounding: bool = False,
    device: str = "cpu",
) -> Evaluation:
    """Measures whatever of the artefacts is given; `not_computed` says what was not, and why.

    `cache` is a folder for what I3D sees in real videos; `published_rounding` drops fractions when
    FVD's pictures become bytes. Raises PipelineError if two artefacts do not belong together, or if
    there is less than a named protocol asks for.
    """
    config = config.resolved()
    store = TokenStore(tokens)
    samples = None if given.samples is None else TokenStore(given.samples)
    network = open_i3d(given.i3d, cache=cache, truncate=published_rounding, device=device)
    evaluation = Evaluation()
    lpips = open_distances(given.lpips, store.info.size, device)
    if isinstance(lpips, Missing):
        evaluation.skip(["lpips"], lpips.why)
    sets = choose_windows(
        store, samples, split=config.split, limit=config.num_videos, seed=config.seed
    )
    repeats = plan_repeats(store, samples, config)
    measure_tokens(evaluation, sets)
    model = _open_model(given.run, store, sets.split, device)
    measure_model(evaluation, sets, model, config, device=device)
    pictures = _open_pictures(given, store, lpips, device)
    measure_pictures(evaluation, sets, pictures, batch_size=config.batch_size)
    fvd = measure_fvd(evaluation, repeats, network, pictures, config)
    decode = None if isinstance(pictures, Missing) else pictures.decode
    copying = measure_copying(evaluation, sets, samples, decode=decode, device=device)
    c2st = measure_c2st(evaluation, sets, samples, seed=config.seed, device=device)
    evaluation.protocol = {
        **sets.protocol(),
        "num_videos_asked": config.num_videos,
        "seed": config.seed,
        "mask_ratios": list(config.mask_ratios),
        "identities": _identities(given, store, samples, pictures),
        "fvd": fvd,
        "copying": copying,
        "c2st": c2st,
    }
    return evaluation


def _identities(
    given: Artefacts, store: TokenStore, samples: TokenStore | None, pictures: Pictures | Missing
) -> dict[str, str | list[str]]:
    """Says by hashes what was measured."""
    known: dict[str, str | list[str]] = {"tokens": store.fingerprint}
    if samples is not None:
        known["samples"] = samples.fingerprint
    if given.run is not None:
        known["model"] = weights_identity(given.run / MODEL_FILE)
    if not isinstance(pictures, Missing):
        known["tokenizer"] = pictures.tokenizer
        if not isinstance(pictures.lpips, Missing):
            known["lpips"] = sorted(map(sha256_file, given.lpips))
    return known


def _open_model(
    run: Path | None, store: TokenStore, split: str, device: str
) -> Callable[..., Mapping[int, tuple[float, float]]] | Missing:
    """Returns how to measure a run's model, once it is known to be of these tokens.

    It is given what the store knows of its conditions.
    """
    if run is None:
        return Missing("no --run was given")
    path = run / MODEL_FILE
    with user_errors():
        made_with = model_metadata(path).get("tokenizer") or None
        model = load_model(path, device)
    theirs = TokensOf(path, made_with, model.config.codebook_size, model.config.grid)
    advice = "Give the tokens that it was trained on."
    check_same_tokens(theirs, TokensOf.store(store), advice, unknown_fits=True)
    conditions = None
    if model.config.conditions:
        conditions = StoreConditions(store, split, model.config, allowed=True)
        if foreign := conditions.foreign:
            click.echo(f"evaluate: {path} knows no label {listed(foreign)}", err=True)
    return means_of(model, conditions, device)


def _open_pictures(
    given: Artefacts, store: TokenStore, lpips: FrameDistances | Missing, device: str
) -> Pictures | Missing:
    """Opens the tokenizer and the frames of the tokens."""
    if given.tokenizer is None:
        return Missing("no --tokenizer was given")
    if given.frames is None:
        return Missing("no --frames was given")
    with user_errors():
        model = load_tokenizer(given.tokenizer, device)
    check_tokenizer(store, given.tokenizer, tokens_identity(model))
    found = find_frames(given.frames, skip_broken=True)
    return Pictures(
        tokenizer=identity(model),
        read=window_reader(found, given.frames, store).pixels,
        decode=partial(decode_tokens, model),
        encoder=model.features,
        lpips=lpips,
        device=device,
    )


@click.command("evaluate")
@click.option("--tokens", type=PLACE, required=True, help="Token store of the real videos.")
@click.option("--samples", type=PLACE, help="Token store of samples.")
@click.option("--run", type=FOLDER, help="Run whose model is measured on held-out tokens.")
@click.option("--tokenizer", type=FILE, help="Tokenizer that made the tokens, .safetensors.")
@click.option(
    "--frames",
    type=FRAMES,
    help="Frames that the tokens were made from, as `tokenize` was given them.",
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
    frames: Frames | None,
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
    videos are from real ones, beside how far real ones are from one another, whether a classifier
    can tell them from training windows, and whether they are copies of those; with --i3d FVD and
    KVD too, with --lpips how different reconstructions look. OUT holds the numbers, the protocol
    that made them, and what was not computed and why. Values: section `evaluate` of the params
    file; evaluate.protocol=mebt-16f or mebt-128f measures as published.

    \b
    Example:
      mebt evaluate --tokens tokens --samples samples/tokens --run run \\
        --tokenizer models/fish-64.safetensors --frames frames --out metrics.json
    """
    given = Artefacts(
        samples=samples, run=run, tokenizer=tokenizer, frames=frames, i3d=i3d, lpips=lpips
    )
    keep_apart(out, tokens, *given.places(), params)
    config = load_section(params, "evaluate", EvaluateConfig, overrides)
    evaluation = evaluate(
        tokens,
        given,
        config,
        cache=out.parent / CACHE if cache is None else cache,
        published_rounding=published_rounding,
        device=device,
    )
    write_json(out, asdict(evaluation))
    _say(evaluation)
    click.echo(f"{out}: {len(evaluation.metrics)} numbers")


def _say(evaluation: Evaluation) -> None:
    """Prints all numbers, whether samples are copies, and what was not computed and why."""
    for key, value in evaluation.metrics.items():
        click.echo(f"{key:32s} {value:.6g}")
    if evaluation.copying:
        click.echo(verdict(asdict(evaluation)))
    for why in dict.fromkeys(evaluation.not_computed.values()):
        keys = [key for key, reason in evaluation.not_computed.items() if reason == why]
        click.echo(f"not computed: {', '.join(keys)}: {why}")
    count, asked = (evaluation.protocol[key] for key in ("num_videos", "num_videos_asked"))
    if count < asked:
        click.echo(f"compared {count} videos on each side, not {asked}: there are no more")
