"""Turn a published YAML config into a params.yaml."""

from pathlib import Path

import click

from mebt.masking import SCHEDULES
from mebt.published import shape_from_hparams
from pipeline.config import as_dict, read_yaml
from pipeline.errors import ConfigError
from pipeline.params.file import to_yaml
from pipeline.published.config import (
    DROPOUTS,
    EXPERIMENTS,
    MODEL_KEYS,
    PARAMS,
    SAMPLING,
    Published,
    commands,
    read_leaves,
    sections,
    window,
)
from pipeline.storage.files import write_text
from stages.options import FILE, OUT
from stages.sections import complete


def import_config(
    config: Path, out: Path, *, experiment: str | None = None, overwrite: bool = False
) -> Published:
    """Writes the params file of a published config: its values, and defaults for all else.

    Raises ConfigError on an unknown key, or a value that its section would refuse.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out, or give --overwrite.")
    published = read_leaves(config, read_yaml(config))
    params = {name: published.values.get(PARAMS + name) for name in MODEL_KEYS}
    params |= {name: published.get(PARAMS + name, float, 0.0) for name in DROPOUTS}
    try:
        model = as_dict(shape_from_hparams(params))
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from None
    values = sections(published, experiment or published.experiment)
    schedule = values["train"]["schedule"]
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"{config}: unknown schedule {schedule!r}; choose from {', '.join(SCHEDULES)}."
        )
    write_text(out, to_yaml(complete({**values, "model": model}, where=str(config))))
    return published


@click.command("import-config")
@click.argument("config", type=FILE)
@click.option("--out", type=OUT, required=True, help="Params file to write.")
@click.option(
    "--experiment",
    type=click.Choice(list(EXPERIMENTS)),
    help="Published data set whose way of sampling to use; else told from the paths in CONFIG.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file at --out.")
def command(config: Path, out: Path, experiment: str | None, overwrite: bool) -> None:
    """Make a params file of CONFIG, a published YAML.

    Keys that have no effect are named and dropped, unknown ones refused. Paths live on the command
    line here: the commands that carry them over are printed.

    \b
    Example:
      mebt import-config stl_16f.yaml --out params.yaml
    """
    published = import_config(config, out, experiment=experiment, overwrite=overwrite)
    frames, stride, size, (t, h, w) = window(published)
    click.echo(f"{out}: windows of {frames} frames, stride {stride}, {size}x{size} pixels")
    click.echo(f"grid         {t}x{h}x{w} = {t * h * w} tokens")
    name = experiment or published.experiment
    if (name, frames) in SAMPLING:
        click.echo(f"sampling     as published for {name}, {frames} frames")
    else:
        click.echo("sampling     our defaults: this is no published experiment; see --experiment")
    for key, reason in published.dropped.items():
        click.echo(f"dropped      {key}: {reason}")
    click.echo(
        "note: train.batch_size is the whole batch; published ones are per GPU: multiply it."
    )
    click.echo("Its paths belong on the command line:")
    for line in commands(published, out):
        click.echo(f"  {line}")
