"""Read a published MeBT checkpoint into a run and its tokenizer, without running its pickle."""

from dataclasses import dataclass
from pathlib import Path

import click
from torch import Tensor

from mebt import MeBT, save_model, weights_identity
from mebt import published as published_mebt
from mebt.weights import MODEL_FILE
from pipeline.errors import ConfigError, user_errors
from pipeline.published.adamw import AdamWState, read_adamw
from pipeline.published.conversion import assemble, check_fit, count_reasons
from pipeline.published.mebt_checkpoint import (
    FIRST_STAGE,
    PublishedMeBT,
    clip_window,
    likely_downsample,
    read_mebt,
)
from pipeline.storage.files import replacing
from pipeline.training.checkpoint import CHECKPOINTS, optimizer_tensors, save_checkpoint
from stages.options import FILE, OUT
from tokenizer import VQGAN, identity, save_tokenizer
from tokenizer import published as published_vqgan
from tokenizer.weights import TOKENIZER_FILE


@dataclass(frozen=True)
class ImportedModel:
    """What `import_model` read, as models of ours."""

    published: PublishedMeBT
    tokenizer: VQGAN
    model: MeBT
    window: dict[str, int | None]
    """Frames, stride and size of the clips that the model was trained on; None: not known."""
    ignored: dict[str, str]
    """Tensors left out, with the reason."""
    is_guessed: bool
    """Whether the tokenizer's down-sampling is only likely."""
    adamw: AdamWState | None
    """State of the optimizer, if it was asked for."""


def import_model(
    checkpoint: Path,
    out: Path,
    *,
    config: Path | None = None,
    downsample: tuple[int, int, int] | None = None,
    optimizer: bool = False,
    overwrite: bool = False,
) -> ImportedModel:
    """Writes a published MeBT, and the VQGAN inside it, into a run's folder.

    Hyper-parameters come from `config`, a published YAML file, where it is given, else from the
    checkpoint. With `optimizer`, the run also gets a checkpoint to go on from. Raises PipelineError
    if the checkpoint is something else or any tensor does not fit.
    """
    _check_out(out, overwrite=overwrite)
    published = read_mebt(checkpoint, config)
    likely, is_guessed = likely_downsample(published, published_vqgan.num_stages(published.vqgan))
    tokenizer, ignored = _tokenizer(published, downsample or likely)
    model = _model(published, tokenizer.config.codebook_size, config or checkpoint)
    groups = published_mebt.optimizer_groups(published.mebt)
    imported = ImportedModel(
        published=published,
        tokenizer=tokenizer,
        model=model,
        window=clip_window(published, tokenizer.config.downsample),
        ignored=ignored,
        is_guessed=is_guessed and downsample is None,
        adamw=read_adamw(published.checkpoint, groups) if optimizer else None,
    )
    _write(out, imported)
    return imported


def _tokenizer(
    published: PublishedMeBT, downsample: tuple[int, int, int]
) -> tuple[VQGAN, dict[str, str]]:
    """Builds the VQGAN inside; also returns which tensors were left out, and why."""
    path, state = published.checkpoint.path, published.vqgan
    with user_errors(path):
        args = published_vqgan.args_from_state(state, downsample=downsample)
        config = published_vqgan.config_from_args(args)
        stages = published_vqgan.num_stages(state)
        if config.num_stages != stages:
            raise ValueError(
                f"down-sampling {downsample} needs {config.num_stages} stages, but the VQGAN has "
                f"{stages}; give --downsample."
            )
        names, ignored = published_vqgan.sort_names(state)
    vqgan = assemble(
        path,
        lambda: VQGAN(config),
        {name: state[key] for name, key in names.items()},
        {name: FIRST_STAGE + key for name, key in names.items()},
        own=published_vqgan.OURS_ONLY,
    )
    ignored |= published_vqgan.unsaved_names(names, vqgan)
    return vqgan, {FIRST_STAGE + key: reason for key, reason in ignored.items()}


def _model(published: PublishedMeBT, codebook_size: int, source: Path) -> MeBT:
    """Builds the MeBT. `source` is the file with its hyper-parameters."""
    state = published.mebt
    with user_errors(source):
        config = published_mebt.config_of_state(
            state, published.hparams, codebook_size=codebook_size
        )
        tensors = published_mebt.convert_state(state, config)
        names = {published_mebt.convert_name(key): key for key in state}
    return assemble(published.checkpoint.path, lambda: MeBT(config), tensors, names)


def _write(out: Path, imported: ImportedModel) -> None:
    """Writes the run's folder, with a checkpoint if there is a state to go on from."""
    checkpoint, model, adamw = imported.published.checkpoint, imported.model, imported.adamw
    state = _training_state(checkpoint.path, model, adamw) if adamw else {}
    source = {"source": checkpoint.sha256}
    extra = {
        "step": str(checkpoint.step),
        "tokens": "",
        "tokenizer": identity(imported.tokenizer),
        **{key: str(value or "") for key, value in imported.window.items()},
        "fps": "",
        **source,
    }
    with user_errors(), replacing(out) as folder:
        folder.mkdir()
        save_tokenizer(folder / TOKENIZER_FILE, imported.tokenizer, extra={"steps": "", **source})
        save_model(folder / MODEL_FILE, model, extra=extra)
        if state:
            save_checkpoint(folder / CHECKPOINTS, checkpoint.step, state, {}, keep=1)


def _training_state(checkpoint: Path, model: MeBT, adamw: AdamWState) -> dict[str, Tensor]:
    """Returns what `mebt train` resumes from: the weights, and our AdamW with their state."""
    steps = {published_mebt.convert_name(name): count for name, count in adamw.steps.items()}
    moments = published_mebt.convert_moments(adamw.moments, model.config)
    weights = model.state_dict()
    names = {name: name for name in weights}
    for key in adamw.moments:
        name, _, kind = key.rpartition(".")
        names[f"{published_mebt.convert_name(name)}.{kind}"] = key
    shapes = {key: weights[key.rpartition(".")[0]] for key in moments}
    # Held against the weights as well: none may share its memory with one of them.
    check_fit(checkpoint, weights | moments, weights | shapes, names)
    optimizer = published_mebt.resumed_optimizer(model, moments, steps)
    return {f"model.{k}": t for k, t in weights.items()} | optimizer_tensors(optimizer)


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder for the run.")
    there = [file.name for file in out.iterdir()] if out.exists() else []
    if others := sorted({*there} - {MODEL_FILE, TOKENIZER_FILE, CHECKPOINTS, ".lock"}):
        raise ConfigError(
            f"{out} holds {others[0]!r}, which is not of an import; choose another --out."
        )
    if there and not overwrite:
        raise ConfigError(f"{out} holds an import; choose another --out, or give --overwrite.")


@click.command("import-model")
@click.argument("checkpoint", type=FILE)
@click.option("--out", type=OUT, required=True, help="Folder of the run to make.")
@click.option("--config", type=FILE, help="Published YAML, if the file holds no hyper-parameters.")
@click.option(
    "--downsample",
    type=click.IntRange(min=1),
    nargs=3,
    metavar="T H W",
    help="Frames and pixels per token, if neither the file nor --config tells.",
)
@click.option(
    "--optimizer", is_flag=True, help="Also take AdamW's state, for `mebt train --init OUT`."
)
@click.option("--overwrite", is_flag=True, help="Replace an import that is at --out.")
def command(
    checkpoint: Path,
    out: Path,
    config: Path | None,
    downsample: tuple[int, int, int] | None,
    optimizer: bool,
    overwrite: bool,
) -> None:
    """Make a run of CHECKPOINT, a published MeBT, and a tokenizer of the VQGAN inside it.

    Writes OUT/model.safetensors and OUT/tokenizer.safetensors. Nothing in the file is run. What
    only training needs, such as discriminators, is left out and counted; anything unknown is
    refused. With --optimizer, OUT/checkpoints holds what `mebt train --init OUT` goes on from: the
    weights, the state of AdamW and the step.

    \b
    Example:
      mebt import-model mebt_sky_128f.ckpt --out run
      mebt sample --run run --out samples --params configs/sky_128f.yaml
      mebt decode --tokens samples --tokenizer run/tokenizer.safetensors --out videos
    """
    imported = import_model(
        checkpoint,
        out,
        config=config,
        downsample=downsample,
        optimizer=optimizer,
        overwrite=overwrite,
    )
    for line in _lines(imported):
        click.echo(line)
    if imported.is_guessed:
        click.echo(
            "note: the checkpoint does not tell the tokenizer's down-sampling; what is shown is "
            "in proportion to the published 4x8x8. If it is wrong, give --downsample.",
            err=True,
        )
    click.echo(f"{out / TOKENIZER_FILE}: identity {identity(imported.tokenizer)}")
    click.echo(f"{out / MODEL_FILE}: identity {weights_identity(out / MODEL_FILE)}")


def _lines(imported: ImportedModel) -> list[str]:
    """Returns what there is to say of a checkpoint that was imported."""
    file = imported.published.checkpoint
    model, vqgan = imported.model.config, imported.tokenizer.config
    counts = [sum(p.numel() for p in m.parameters()) for m in (imported.model, imported.tokenizer)]
    t, h, w = model.grid
    window = {key: "unknown" if value is None else value for key, value in imported.window.items()}
    lines = [
        f"source       {file.path}, SHA-256 {file.sha256}, step {file.step}",
        f"model        {counts[0]:,} parameters, width {model.width}, {model.num_heads} heads, "
        f"{model.num_latents} latents",
        f"layers       {len(model.layers)}: {' '.join(model.layers)}",
        f"grid         {t}x{h}x{w} = {model.num_tokens} tokens of {model.codebook_size}",
        f"window       {window['frames']} frames, stride {window['stride']}, size {window['size']}",
        f"tokenizer    {counts[1]:,} parameters, width {vqgan.width}, down-sampling "
        f"{'x'.join(map(str, vqgan.downsample))}, {vqgan.codebook_size} vectors of "
        f"{vqgan.embedding_dim}, norm {vqgan.norm}, padding {vqgan.padding}",
        f"tensors      {len(file.state) - len(imported.ignored)} taken",
        *(f"left out     {line}" for line in count_reasons(imported.ignored)),
    ]
    if adamw := imported.adamw:
        lines.append(
            f"optimizer    AdamW's state of {len(adamw.steps)} parameters after "
            f"{max(adamw.steps.values())} updates, the last at learning rate "
            f"{adamw.learning_rate} with weight decay {adamw.weight_decay}"
        )
    return lines
