"""Read a published VQGAN checkpoint into a tokenizer, without running its pickle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.config import read_yaml
from pipeline.errors import CheckpointError, ConfigError, user_errors
from pipeline.published.checkpoint import read_foreign
from pipeline.published.conversion import assemble, count_reasons
from pipeline.storage.files import replacing
from stages.options import FILE, OUT
from tokenizer import VQGAN, VQGANConfig, identity, save_tokenizer
from tokenizer.published import (
    OURS_ONLY,
    config_from_args,
    num_stages,
    sort_names,
    unsaved_names,
)


@dataclass(frozen=True)
class ImportedTokenizer:
    """What `import_tokenizer` read and wrote."""

    config: VQGANConfig
    parameters: int
    identity: str
    source: str
    """SHA-256 of the checkpoint."""
    taken: int
    ignored: dict[str, str]
    """Tensors left out, with the reason."""


def import_tokenizer(
    checkpoint: Path, out: Path, *, config: Path | None = None, overwrite: bool = False
) -> ImportedTokenizer:
    """Writes a published VQGAN as a tokenizer of ours.

    Hyper-parameters come from `config`, a YAML file, where it is given, else from the checkpoint.
    Raises PipelineError if the checkpoint is something else or any tensor does not fit.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: give a name that ends in .safetensors.")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out, or give --overwrite.")
    published = read_foreign(checkpoint, wanted="a VQGAN")
    args: dict[str, Any] = published.hyper_parameters if config is None else read_yaml(config)
    args = args.get("args", args)
    if not isinstance(args, dict) or not args:
        raise CheckpointError(
            f"{checkpoint} holds no hyper-parameters; give them in a YAML file with --config."
        )
    with user_errors(config or checkpoint):
        names, ignored = sort_names(published.state)
        shape = config_from_args(args)
        if shape.num_stages != num_stages(published.state):
            raise ValueError(
                f"downsample {list(shape.downsample)} needs {shape.num_stages} stages, but the "
                f"VQGAN has {num_stages(published.state)}."
            )
    tensors = {name: published.state[key] for name, key in names.items()}
    model = assemble(checkpoint, lambda: VQGAN(shape), tensors, names, own=OURS_ONLY)
    extra = {"source": published.sha256, "steps": str(published.step)}
    with user_errors(), replacing(out) as temporary:
        save_tokenizer(temporary, model, extra=extra)
    ignored |= unsaved_names(names, model)
    return ImportedTokenizer(
        config=shape,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        identity=identity(model),
        source=published.sha256,
        taken=len(published.state) - len(ignored),
        ignored=ignored,
    )


@click.command("import-tokenizer")
@click.argument("checkpoint", type=FILE)
@click.option("--out", type=OUT, required=True, help="Tokenizer to write, .safetensors.")
@click.option("--config", type=FILE, help="YAML of hyper-parameters, if the file holds none.")
@click.option("--overwrite", is_flag=True, help="Replace the file at --out.")
def command(checkpoint: Path, out: Path, config: Path | None, overwrite: bool) -> None:
    """Make a tokenizer of CHECKPOINT, a published VQGAN (TATS).

    Nothing in the file is run. What only training needs, such as discriminators, is left out and
    counted; anything unknown is refused. --config holds the published names: n_codes,
    embedding_dim, n_hiddens, downsample, norm_type, and if need be padding_type, image_channels.

    \b
    Example:
      mebt import-tokenizer vqgan_sky_128_488.ckpt --out tokenizer.safetensors
    """
    imported = import_tokenizer(checkpoint, out, config=config, overwrite=overwrite)
    shape = imported.config
    t, h, w = shape.downsample
    click.echo(f"source       {checkpoint}, SHA-256 {imported.source}")
    click.echo(
        f"tokenizer    {imported.parameters:,} parameters, width {shape.width}, norm {shape.norm}, "
        f"padding {shape.padding}"
    )
    click.echo(f"grid         a token for {t} frames of {h}x{w} pixels")
    click.echo(f"codebook     {shape.codebook_size} vectors of {shape.embedding_dim}")
    click.echo(f"tensors      {imported.taken} taken")
    for line in count_reasons(imported.ignored):
        click.echo(f"left out     {line}")
    click.echo(f"{out}: identity {imported.identity}")
