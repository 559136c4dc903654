"""what was pushed -> a folder, once everything in it was checked."""

from pathlib import Path

import click

from pipeline.sharing.pull import pull
from pipeline.storage.files import keep_apart
from pipeline.storage.places import Place
from stages.described import describe_files
from stages.options import OUT, SHARE


def check_files(folder: Path) -> None:
    """Raises PipelineError unless what is in a folder can be used, and belongs together."""
    describe_files({path.name: path for path in folder.iterdir()})


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
    manifest, count = pull(source, out, check_files)
    done = f"{count} files pulled" if count else "nothing to do"
    click.echo(f"{out}: {done}, fingerprint {manifest.fingerprint[:12]}")
