"""what was pushed -> a folder, once everything in it was checked."""

from pathlib import Path

import click

from mebt import load_model
from mebt.weights import MODEL_FILE
from pipeline.errors import user_errors
from pipeline.sharing.pull import pull
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from stages.options import OUT, SHARE
from tokenizer import load_tokenizer
from tokenizer.weights import TOKENIZER_FILE


def check_models(folder: Path) -> None:
    """Raises CheckpointError if a model or a tokenizer in a folder cannot be used."""
    with user_errors():
        if (folder / MODEL_FILE).exists():
            load_model(folder / MODEL_FILE)
        if (folder / TOKENIZER_FILE).exists():
            load_tokenizer(folder / TOKENIZER_FILE)


@click.command("pull")
@click.option("--from", "source", type=SHARE, required=True, help="Folder, s3://… or hf://…")
@click.option("--out", type=OUT, required=True, help="Folder to make.")
def command(source: Place, out: Path) -> None:
    """Get a run or a tokenizer that was pushed.

    Takes the files that its manifest lists, under the names that `mebt push` gives, each with the
    SHA-256 that is listed; reads every one, runs nothing of it, and makes OUT when all are good.
    That says that it is what was pushed, not by whom: compare the fingerprint with its maker's.

    \b
    Example:
      mebt pull --from hf://me/fish --out fish
      mebt sample --run fish --params fish/params.yaml --out samples/tokens
    """
    keep_apart(out, source)
    manifest, count = pull(source, out, check_models)
    done = f"{count} files pulled" if count else "nothing to do"
    click.echo(f"{out}: {done}, fingerprint {manifest.fingerprint[:12]}")
