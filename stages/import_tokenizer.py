"""Read a published tokenizer into one of ours, without running anything in its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.config import read_yaml
from pipeline.errors import CheckpointError, ConfigError, user_errors
from pipeline.published.checkpoint import Foreign, check_kind, open_foreign
from pipeline.published.conversion import assemble, count_reasons
from pipeline.published.parts import read_parts
from pipeline.published.torchscript import is_script
from pipeline.storage.files import replacing
from stages.options import FILE, OUT
from tokenizer import VQGAN, Tokenizer, TokenizerConfig, identity, save_tokenizer
from tokenizer.cosmos import Cosmos
from tokenizer.cosmos import published as cosmos
from tokenizer.published import (
    OURS_ONLY,
    config_from_args,
    num_stages,
    sort_names,
    unsaved_names,
)
from tokenizer.vidtok import VidTok
from tokenizer.vidtok import published as vidtok

Downsample = tuple[int, int, int]


@dataclass(frozen=True)
class Read:
    """A published tokenizer as a model of ours."""

    model: Tokenizer
    extra: dict[str, str]
    """What our file says of its source."""
    total: int
    """Tensors in what was read."""
    ignored: dict[str, str]
    """Those left out, with the reason."""


@dataclass(frozen=True)
class ImportedTokenizer:
    """What `import_tokenizer` read and wrote."""

    config: TokenizerConfig
    parameters: int
    identity: str
    source: str
    """SHA-256 of the checkpoint."""
    taken: int
    ignored: dict[str, str]
    """Tensors left out, with the reason."""


def import_tokenizer(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    config: Path | None = None,
    downsample: Downsample | None = None,
    overwrite: bool = False,
) -> ImportedTokenizer:
    """Writes a published tokenizer, in one file or in parts, as one of ours.

    Hyper-parameters of a VQGAN come from `config`, a YAML file, where it is given, else from the
    checkpoint; those of VidTok always from there; the down-sampling of a Cosmos tokenizer from
    `downsample` if its layers do not tell.
    Raises PipelineError if the files are something else or any tensor does not fit.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: give a name that ends in .safetensors.")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out, or give --overwrite.")
    read = _read(checkpoints, config, downsample)
    with user_errors(), replacing(out) as temporary:
        save_tokenizer(temporary, read.model, extra=read.extra)
    return ImportedTokenizer(
        config=read.model.config,
        parameters=sum(parameter.numel() for parameter in read.model.parameters()),
        identity=identity(read.model),
        source=read.extra["source"],
        taken=read.total - len(read.ignored),
        ignored=read.ignored,
    )


def _read(paths: Sequence[Path], config: Path | None, downsample: Downsample | None) -> Read:
    """Reads the files as what they look like."""
    alone = len(paths) == 1 and not is_script(paths[0])
    foreign = open_foreign(paths[0]) if alone else None
    if foreign is None or any(map(cosmos.SIGN.match, foreign.state)):
        if config is not None:
            raise ConfigError("--config is not for Cosmos; its tensors tell its shape.")
        return _read_cosmos(paths, downsample)
    if downsample is not None:
        raise ConfigError("--downsample is for Cosmos; the hyper-parameters of others say it.")
    if any(map(vidtok.SIGN.match, foreign.state)):
        return _read_vidtok(foreign, config)
    check_kind(foreign.path, foreign.state, "a VQGAN")
    return _read_vqgan(foreign, config)


def _read_cosmos(paths: Sequence[Path], downsample: Downsample | None) -> Read:
    parts = read_parts(paths)
    with user_errors(parts.where):
        shape = cosmos.config_from_state(parts.state, parts.used, downsample=downsample)
        names, ignored = cosmos.sort_names(parts.state, shape)
    tensors = {name: parts.state[key] for name, key in names.items()}
    model = assemble(parts.where, lambda: Cosmos(shape), tensors, names)
    return Read(model, {"source": parts.sha256}, len(parts.state), ignored)


def _read_vidtok(published: Foreign, config: Path | None) -> Read:
    if config is None:
        raise CheckpointError(
            f"{published.path} is of VidTok, which does not say how it computes; give the YAML "
            "file of its name, which is published beside it, with --config."
        )
    with user_errors(config):
        shape = vidtok.config_from_yaml(read_yaml(config))
        names, ignored = vidtok.sort_names(published.state, shape)
    tensors = {name: vidtok.as_3d(published.state[key]) for name, key in names.items()}
    model = assemble(published.path, lambda: VidTok(shape), tensors, names)
    extra = {"source": published.sha256, "steps": str(published.step)}
    return Read(model, extra, len(published.state), ignored)


def _read_vqgan(published: Foreign, config: Path | None) -> Read:
    checkpoint = published.path
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
    return Read(model, extra, len(published.state), ignored | unsaved_names(names, model))


@click.command("import-tokenizer")
@click.argument("checkpoints", metavar="CHECKPOINT...", type=FILE, nargs=-1, required=True)
@click.option("--out", type=OUT, required=True, help="Tokenizer to write, .safetensors.")
@click.option("--config", type=FILE, help="YAML of hyper-parameters, if CHECKPOINT holds none.")
@click.option(
    "--downsample",
    type=click.IntRange(min=1),
    nargs=3,
    metavar="T H W",
    help="Frames and pixels per token, of a Cosmos tokenizer whose layers do not tell.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file at --out.")
def command(
    checkpoints: tuple[Path, ...],
    out: Path,
    config: Path | None,
    downsample: Downsample | None,
    overwrite: bool,
) -> None:
    """Make a tokenizer of CHECKPOINT, published with TATS, Cosmos (DV) or VidTok (causal FSQ).

    Nothing in the files is run. What only training needs, such as discriminators, is left out and
    counted; anything unknown is refused. For a VQGAN, --config holds the published names: n_codes,
    embedding_dim, n_hiddens, downsample, norm_type, and if need be padding_type, image_channels.

    Of Cosmos give encoder.jit and decoder.jit, or autoencoder.jit, or a state dict; of VidTok the
    checkpoint, and with --config the YAML file of its name.

    \b
    Example:
      mebt import-tokenizer vqgan_sky_128_488.ckpt --out tokenizer.safetensors
      mebt import-tokenizer encoder.jit decoder.jit --out cosmos.safetensors
      mebt import-tokenizer vidtok.ckpt --config vidtok.yaml --out vidtok.safetensors
    """
    imported = import_tokenizer(
        checkpoints, out, config=config, downsample=downsample, overwrite=overwrite
    )
    shape = imported.config
    t, h, w = shape.downsample
    source = " and ".join(map(str, checkpoints))
    click.echo(f"source       {source}, SHA-256 {imported.source}")
    click.echo(f"tokenizer    {imported.parameters:,} parameters, {shape.about}")
    click.echo(f"grid         a token for {t} frames of {h}x{w} pixels")
    click.echo(f"codebook     {shape.codebook_size} vectors of {shape.embedding_dim}")
    click.echo(f"tensors      {imported.taken} taken")
    for line in count_reasons(imported.ignored):
        click.echo(f"left out     {line}")
    click.echo(f"{out}: identity {imported.identity}")
