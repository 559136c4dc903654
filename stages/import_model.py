"""Read a published MeBT checkpoint into a run and its tokenizer, without running its pickle."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from mebt import MeBT, MeBTConfig, save_model, weights_identity
from mebt import published as published_mebt
from mebt.optim import make_optimizer
from pipeline.config import read_yaml
from pipeline.errors import CheckpointError, ConfigError, user_errors
from pipeline.published.adamw import MOMENTS, AdamWState, read_adamw
from pipeline.published.checkpoint import Foreign, read_foreign, whole_config
from pipeline.published.conversion import assemble, check_fit, count_reasons
from pipeline.storage.files import replacing
from pipeline.training.checkpoint import optimizer_tensors, save_checkpoint
from stages.options import FILE, OUT
from tokenizer import VQGAN, VQGANConfig, identity, save_tokenizer
from tokenizer import published as published_vqgan
from tokenizer.weights import inference_tensors

MODEL, TOKENIZER, CHECKPOINTS = "model.safetensors", "tokenizer.safetensors", "checkpoints"
FIRST_STAGE = "first_stage_model."
OURS_ONLY = frozenset({"codebook.initialized"})
STATISTICS = "running statistics, needed for training only"
"""Codebook counts and sums, and how many batches a norm has seen."""


@dataclass(frozen=True)
class ImportedModel:
    """What `import_model` read and wrote."""

    model: MeBTConfig
    tokenizer: VQGANConfig
    parameters: int
    tokenizer_parameters: int
    identity: str
    tokenizer_identity: str
    source: str
    """SHA-256 of the checkpoint."""
    step: int
    window: dict[str, int | None]
    """Frames, stride and size of the clips that the model was trained on; None: not known."""
    taken: int
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
    found = read_foreign(checkpoint, wanted="a MeBT")
    hparams, data = _hyper_parameters(found, config)
    inner, outer = _split(found)
    grid = _grid(checkpoint, hparams)
    told, is_guessed = _downsample(inner, grid, data)
    vqgan, ignored = _tokenizer(checkpoint, inner, downsample or told)
    with user_errors(config or checkpoint):
        blocks = published_mebt.num_blocks(outer)
        if hparams.get("n_layer") != blocks:
            raise ValueError(f"n_layer is {hparams.get('n_layer')}, but it has {blocks} layers.")
        model_config = published_mebt.config_from_hparams(
            hparams, codebook_size=vqgan.config.codebook_size
        )
        tensors = published_mebt.convert_state(outer, model_config)
        theirs = {published_mebt.convert_name(key): key for key in outer}
    model = assemble(checkpoint, lambda: MeBT(model_config), tensors, theirs)
    adamw = read_adamw(found, published_mebt.optimizer_groups(outer)) if optimizer else None
    state = _training_state(checkpoint, model, adamw) if adamw else {}
    t, h, w = vqgan.config.downsample
    window = {
        "frames": grid[0] * t,
        "stride": _positive(data.get("sample_every_n_frames")),
        "size": grid[1] * h if grid[1] * h == grid[2] * w else None,
    }
    tokenizer_identity = identity(vqgan)
    source = {"source": found.sha256}
    extra = {
        "step": str(found.step),
        "tokens": "",
        "tokenizer": tokenizer_identity,
        **{key: str(value or "") for key, value in window.items()},
        "fps": "",
        **source,
    }
    with user_errors(), replacing(out) as folder:
        folder.mkdir()
        save_tokenizer(folder / TOKENIZER, vqgan, extra={"steps": "", **source})
        save_model(folder / MODEL, model, extra=extra)
        if state:
            save_checkpoint(folder / CHECKPOINTS, found.step, state, {}, keep=1)
    return ImportedModel(
        model=model_config,
        tokenizer=vqgan.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokenizer_parameters=sum(parameter.numel() for parameter in vqgan.parameters()),
        identity=weights_identity(out / MODEL),
        tokenizer_identity=tokenizer_identity,
        source=found.sha256,
        step=found.step,
        window=window,
        taken=len(found.state) - len(ignored),
        ignored=ignored,
        is_guessed=is_guessed and downsample is None,
        adamw=adamw,
    )


def _training_state(checkpoint: Path, model: MeBT, adamw: AdamWState) -> dict[str, Tensor]:
    """Returns what `mebt train` resumes from: the weights, and our AdamW with their state."""
    parameters = dict(model.named_parameters())
    ours = {name: published_mebt.convert_name(name) for name in adamw.steps}
    # Held against the weights as well: none may share its memory with one of them.
    moments, expected, names = model.state_dict(), model.state_dict(), {n: n for n in parameters}
    for kind in MOMENTS:
        theirs = {name: adamw.moments[f"{name}.{kind}"] for name in ours}
        for name, tensor in published_mebt.convert_state(theirs, model.config).items():
            moments[f"{name}.{kind}"], expected[f"{name}.{kind}"] = tensor, parameters[name]
        names |= {f"{name}.{kind}": f"{published}.{kind}" for published, name in ours.items()}
    check_fit(checkpoint, moments, expected, names)
    optimizer = make_optimizer(model, learning_rate=1.0, weight_decay=0.0)  # A run sets its own.
    for published, name in ours.items():
        entry = {kind: moments[f"{name}.{kind}"].float() for kind in MOMENTS}
        step = torch.tensor(float(adamw.steps[published]))
        optimizer.state[parameters[name]] = {"step": step, **entry}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return weights | optimizer_tensors(optimizer)


def _tokenizer(
    checkpoint: Path, inner: dict[str, Tensor], downsample: tuple[int, int, int]
) -> tuple[VQGAN, dict[str, str]]:
    """Builds the VQGAN of its published tensors; also returns what was left out, and why."""
    with user_errors(checkpoint):
        args = published_vqgan.args_from_state(inner, downsample=downsample)
        config = published_vqgan.config_from_args(args)
        stages = published_vqgan.num_stages(inner)
        if config.num_stages != stages:
            raise ValueError(
                f"down-sampling {downsample} needs {config.num_stages} stages, but the VQGAN has "
                f"{stages}; give --downsample."
            )
        names, left_out = published_vqgan.sort_names(inner)
    vqgan = assemble(
        checkpoint,
        lambda: VQGAN(config),
        {name: inner[key] for name, key in names.items()},
        {name: FIRST_STAGE + key for name, key in names.items()},
        own=OURS_ONLY,
    )
    kept = inference_tensors(vqgan)
    ignored = {FIRST_STAGE + key: reason for key, reason in left_out.items()}
    ignored |= {FIRST_STAGE + names[name]: STATISTICS for name in names if name not in kept}
    return vqgan, ignored


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder for the run.")
    there = sorted(file.name for file in out.iterdir()) if out.exists() else []
    if others := [name for name in there if name not in (MODEL, TOKENIZER, CHECKPOINTS, ".lock")]:
        raise ConfigError(
            f"{out} holds {others[0]!r}, which is not of an import; choose another --out."
        )
    if there and not overwrite:
        raise ConfigError(f"{out} holds an import; choose another --out, or give --overwrite.")


def _hyper_parameters(found: Foreign, config: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the published `model.params` with the mask's shape, and the section `data`."""
    if config is not None:
        tree = read_yaml(config)
        model = _section(tree, "model")
        mask, params, data = _section(model, "mask"), _section(model, "params"), tree.get("data")
    else:
        tree = found.hyper_parameters
        params, mask = _section(tree, "transformer_config"), _section(tree, "mask_config")
        raw = found.content.get("hyper_parameters")
        node = raw.get("transformer_config") if isinstance(raw, dict) else None
        data = whole_config(node).get("data")
        if "params" in params:  # Either the section itself or the one around it was kept.
            params = _section(params, "params")
    if not params or not mask:
        raise CheckpointError(
            f"{config or found.path} holds no hyper-parameters of a MeBT: give the published YAML "
            "file, with model.params and model.mask.params, with --config."
        )
    hparams = {**params, "shape": _section(mask, "params").get("shape")}
    return hparams, data if isinstance(data, dict) else {}


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _split(found: Foreign) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors of the VQGAN inside, without their prefix, and those of the MeBT."""
    inner = {
        key.removeprefix(FIRST_STAGE): tensor
        for key, tensor in found.state.items()
        if key.startswith(FIRST_STAGE)
    }
    if not inner:
        raise CheckpointError(
            f"{found.path} lacks the VQGAN that a published MeBT has inside ({FIRST_STAGE}*), so "
            "its tokens could not be decoded."
        )
    return inner, {k: t for k, t in found.state.items() if not k.startswith(FIRST_STAGE)}


def _grid(checkpoint: Path, hparams: dict[str, Any]) -> tuple[int, int, int]:
    grid = hparams["shape"]
    if not isinstance(grid, list) or len(grid) != 3 or not all(map(_positive, grid)):
        raise CheckpointError(f"{checkpoint}: the mask's shape must be (t, h, w), found {grid!r}.")
    return grid[0], grid[1], grid[2]


def _positive(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count else None


def _downsample(
    inner: dict[str, Tensor], grid: tuple[int, int, int], data: dict[str, Any]
) -> tuple[tuple[int, int, int], bool]:
    """Returns pixels per token, and whether that is a guess.

    The VQGAN's tensors tell the largest factor only. The data's frames and pixels tell all, if they
    agree with it; else the axes shrink in proportion to the published 4x8x8.
    """
    largest = 1 << published_vqgan.num_stages(inner)
    frames, size = _positive(data.get("sequence_length")), _positive(data.get("resolution"))
    if frames and size and not (frames % grid[0] or size % grid[1] or size % grid[2]):
        told = (frames // grid[0], size // grid[1], size // grid[2])
        if max(told) == largest and all(math.log2(factor).is_integer() for factor in told):
            return told, False
    return (max(1, largest // 2), largest, largest), True


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
    made = import_model(
        checkpoint,
        out,
        config=config,
        downsample=downsample,
        optimizer=optimizer,
        overwrite=overwrite,
    )
    t, h, w = made.model.grid
    shape, vqgan = made.model, made.tokenizer
    known = {key: "unknown" if value is None else value for key, value in made.window.items()}
    click.echo(f"source       {checkpoint}, SHA-256 {made.source}, step {made.step}")
    click.echo(
        f"model        {made.parameters:,} parameters, width {shape.width}, {shape.num_heads} "
        f"heads, {shape.num_latents} latents"
    )
    click.echo(f"layers       {len(shape.layers)}: {' '.join(shape.layers)}")
    click.echo(f"grid         {t}x{h}x{w} = {shape.num_tokens} tokens of {shape.codebook_size}")
    click.echo(
        f"window       {known['frames']} frames, stride {known['stride']}, size {known['size']}"
    )
    click.echo(
        f"tokenizer    {made.tokenizer_parameters:,} parameters, width {vqgan.width}, "
        f"down-sampling {'x'.join(map(str, vqgan.downsample))}, {vqgan.codebook_size} vectors of "
        f"{vqgan.embedding_dim}, norm {vqgan.norm}, padding {vqgan.padding}"
    )
    click.echo(f"tensors      {made.taken} taken")
    for line in count_reasons(made.ignored):
        click.echo(f"left out     {line}")
    if adamw := made.adamw:
        click.echo(
            f"optimizer    AdamW's state of {len(adamw.steps)} parameters after "
            f"{max(adamw.steps.values())} updates, the last at learning rate "
            f"{adamw.learning_rate} with weight decay {adamw.weight_decay}"
        )
    if made.is_guessed:
        click.echo(
            "note: the checkpoint does not tell the tokenizer's down-sampling; what is shown is "
            "in proportion to the published 4x8x8. If it is wrong, give --downsample.",
            err=True,
        )
    click.echo(f"{out / TOKENIZER}: identity {made.tokenizer_identity}")
    click.echo(f"{out / MODEL}: identity {made.identity}")
