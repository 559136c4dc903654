"""a trained run or tokenizer -> a folder, a bucket or the Hugging Face hub, with a card."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import click

from mebt.weights import MODEL_FILE
from pipeline.errors import CheckpointError, ConfigError, ShareError
from pipeline.evaluation.copying import verdict
from pipeline.sharing.card import SHEETS, About, write_card
from pipeline.sharing.manifest import LICENSE, list_files, names_of
from pipeline.sharing.push import Share, push
from pipeline.storage.files import keep_apart, lock, read_text
from pipeline.storage.hub import is_hub
from pipeline.storage.places import Place, is_remote
from pipeline.training.checkpoint import CHECKPOINTS, POINTER, last_step, mend_pointer
from stages.described import METRICS, PARAMS, describe_files
from stages.options import FILE, FOLDER, SHARE_OUT, overwrite_option
from tokenizer.weights import TOKENIZER_FILE


def gather_files(
    run: Path | None,
    *,
    tokenizer: Path | None = None,
    samples: Path | None = None,
    metrics: Path | None = None,
    params: Path | None = None,
    checkpoints: bool = False,
) -> dict[str, Path]:
    """Returns the files to push, by name. Raises PipelineError if one that is needed is not there.

    What is given goes before what lies in the run.
    """
    files = {}
    if run:
        checkpoint = _last_checkpoint(run) if checkpoints else None
        files = {name: run / name for name in names_of(run, checkpoint=checkpoint)}
    if samples:
        sheet = next((name for name in SHEETS if (samples / name).is_file()), None)
        if sheet is None:
            raise ShareError(f"{samples} has no {SHEETS[0]}: give a folder of `mebt decode`.")
        files = {name: path for name, path in files.items() if name not in SHEETS}
        files[sheet] = samples / sheet
    given = {TOKENIZER_FILE: tokenizer, METRICS: metrics, PARAMS: params}
    files |= {name: path for name, path in given.items() if path}
    if not {MODEL_FILE, TOKENIZER_FILE} & files.keys():
        raise CheckpointError(f"{run} has neither a {MODEL_FILE} nor a {TOKENIZER_FILE}.")
    if PARAMS not in files and MODEL_FILE in files:
        raise ConfigError(
            f"{run} holds no {PARAMS}; give --params, so that others sample by your values."
        )
    return files


def _last_checkpoint(run: Path) -> str:
    mend_pointer(run / CHECKPOINTS)
    if not last_step(run / CHECKPOINTS):
        raise CheckpointError(f"{run} has no checkpoint; push it without --checkpoints.")
    return read_text(run / CHECKPOINTS / POINTER).strip()


def make_share(files: Mapping[str, Path], place: Place, license: str | None) -> Share:
    """Lists what is pushed and writes its card."""
    artefacts, evaluation = describe_files(files)
    remote = is_remote(place) or is_hub(place)
    about = About(
        name=str(place).rstrip("/").rpartition("/")[2] if remote else Path(place).resolve().name,
        place=str(place) if remote else "FOLDER",
        facts=[
            (f"{artefact.name}, {what}", value)
            for artefact in artefacts
            for what, value in (("what", artefact.about), *artefact.rows)
        ],
        files=list(files),
        license=license,
        params=read_text(files[PARAMS]) if PARAMS in files else "",
        evaluation=evaluation,
        copying=verdict(evaluation),
    )
    return Share(files, list_files(files, license), write_card(about))


@click.command("push")
@click.option("--run", type=FOLDER, help="Run to push: of `train`, or of `fit-tokenizer`.")
@click.option("--tokenizer", type=FILE, help="Tokenizer to push, alone or beside its run.")
@click.option("--samples", type=FOLDER, help="Videos of `mebt decode`: the card shows their sheet.")
@click.option("--metrics", type=FILE, help="Numbers of `mebt evaluate`, for the card.")
@click.option("--params", type=FILE, help="Values to sample by.  [default: RUN/params.yaml]")
@click.option("--license", "license_", metavar="ID", help="Such as cc-by-4.0; the hub needs one.")
@click.option("--checkpoints", is_flag=True, help="Push the last checkpoint, too, to train on.")
@click.option("--out", type=SHARE_OUT, required=True, help="Folder, s3://… or hf://owner/name.")
@overwrite_option
def command(
    run: Path | None,
    tokenizer: Path | None,
    samples: Path | None,
    metrics: Path | None,
    params: Path | None,
    license_: str | None,
    checkpoints: bool,
    out: Place,
    overwrite: bool,
) -> None:
    """Give a run or a tokenizer to others.

    Copies the model, its record, its log and its previews to a folder, a bucket or the Hugging Face
    hub, with what else is given, the SHA-256 of each file, and README.md: a card that says what it
    is, how good and measured how, and how to use it. Names of your videos and frames are not among
    it; pictures are, in previews and the sheet. A repository that has to be made is private.

    \b
    Example:
      mebt push --run run --params params.yaml --out shared/fish
      mebt push --run run --tokenizer tokenizer-run/tokenizer.safetensors --params params.yaml \\
        --samples samples/videos --metrics metrics.json --license cc-by-4.0 --out hf://me/fish
      mebt push --tokenizer tokenizer-run/tokenizer.safetensors --out s3://bucket/tokenizer
    """
    if not run and not tokenizer:
        raise click.UsageError("give --run or --tokenizer.")
    if checkpoints and not run:
        raise click.UsageError("--checkpoints is of a --run.")
    if license_ is not None and not LICENSE.fullmatch(license_):
        raise click.UsageError(f"--license {license_!r}: write an identifier, such as cc-by-4.0.")
    if is_hub(out) and not license_:
        raise click.UsageError("the hub needs --license: under which may others use this?")
    keep_apart(out, run, tokenizer, samples, metrics, params)
    with lock(run) if run else nullcontext():  # What is still being trained changes.
        files = gather_files(
            run,
            tokenizer=tokenizer,
            samples=samples,
            metrics=metrics,
            params=params,
            checkpoints=checkpoints,
        )
        share = make_share(files, out, license_)
        written = push(share, out, overwrite=overwrite)
    done = f"{written} files pushed" if written else "nothing to do"
    click.echo(f"{out}: {done}, fingerprint {share.manifest.fingerprint[:12]}")
