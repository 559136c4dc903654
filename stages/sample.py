"""a trained model -> new tokens, in a token store of their own."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from lightning_fabric import Fabric

from mebt import SampleConfig, load_model, model_metadata, weights_identity
from mebt import sample as draw
from pipeline.checkpoint import user_errors
from pipeline.config import load_section
from pipeline.errors import CheckpointError
from pipeline.files import lock
from pipeline.progress import progress
from pipeline.token_store import StoreInfo, StoreWriter, TokenStore, create_store, numbered_plan
from stages.options import (
    FOLDER,
    OUT,
    Launch,
    fabric_options,
    overwrite_option,
    params_options,
)

MODEL = "model.safetensors"
SPLIT = "sample"
SHARD_WINDOWS = 16
"""Samples that are written, and redone after a stop, together."""
NO_EFFECT = ("num_samples", "batch_size")
"""Values that no single sample depends on."""


@dataclass(frozen=True)
class Sampled:
    """What `sample` did."""

    total: int
    drawn: int
    """Samples drawn by this process in this call."""
    fingerprint: str


def sample(
    run: Path, out: Path, config: SampleConfig, *, fabric: Fabric, overwrite: bool = False
) -> Sampled:
    """Draws samples into a token store; goes on where an earlier call was cut off.

    Sample number i depends on the weights, the config, the seed and i: not on the batch size, nor
    on the number of processes. Raises PipelineError if there is no usable model in `run`, or if
    `out` holds something else.
    """
    path = run / MODEL
    if not path.exists():
        raise CheckpointError(f"{path} is missing; train it with `mebt train --out {run}`.")
    with user_errors():
        metadata = model_metadata(path)
        model = load_model(path, str(fabric.device))
    if config.top_k is not None and config.top_k > model.config.codebook_size:
        raise CheckpointError(
            f"sample.top_k is {config.top_k}, but {path} knows {model.config.codebook_size} tokens."
        )
    identity = weights_identity(path)
    settings = {key: value for key, value in asdict(config).items() if key not in NO_EFFECT}
    window = {key: int(metadata.get(key) or 0) or None for key in ("frames", "stride", "size")}
    counts = {SPLIT: config.num_samples}
    info = StoreInfo(
        tokenizer=metadata.get("tokenizer") or None,
        codebook_size=model.config.codebook_size,
        grid=model.config.grid,
        source=identity,
        counts=counts,
        shard_windows=SHARD_WINDOWS,
        chunk_windows=SHARD_WINDOWS,
        extra={"sample": settings, "model": identity, "step": metadata.get("step", "")},
        **window,
    )
    with lock(out) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            plan = numbered_plan(counts, SPLIT, SHARD_WINDOWS)
            create_store(out, info, plan, overwrite=overwrite).unfinished()
        fabric.barrier()
        writer = StoreWriter(out)
        missing = set(writer.store.missing())
        mine = [
            shard
            for index, shard in enumerate(info.shards())
            if index % fabric.world_size == fabric.global_rank and shard in missing
        ]
        rows = [range(*info.shard_rows(*shard)) for shard in mine]
        total = sum(map(len, rows))
        with progress("sample", total, "sample", shown=fabric.is_global_zero) as advance:
            for (split, shard), numbers in zip(mine, rows, strict=True):
                parts = []
                for start in range(0, len(numbers), config.batch_size):
                    batch = numbers[start : start + config.batch_size]
                    tokens = draw(
                        model,
                        model.config.num_tokens,
                        config,
                        numbers=batch,
                        device=fabric.device,
                    )
                    parts.append(tokens.cpu())
                    advance(len(batch))
                windows = torch.cat(parts).reshape(-1, *model.config.grid)
                writer.write_shard(split, shard, windows.numpy())
        fabric.barrier()
    return Sampled(config.num_samples, total, TokenStore(out).fingerprint)


@click.command("sample")
@click.option("--run", type=FOLDER, required=True, help="Run whose model is sampled.")
@click.option("--out", type=OUT, required=True, help="Token store to make or to go on with.")
@params_options
@fabric_options
@overwrite_option
def command(
    run: Path,
    out: Path,
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    overwrite: bool,
) -> None:
    """Draw new videos, as tokens.

    Drafts whole windows by confidence, revises them, and writes them into a token store, which
    `mebt decode` turns into videos. Sample number i is the same whatever the batch size and the
    number of processes. Values: section `sample` of the params file.

    \b
    Example:
      mebt sample --run run --out samples/tokens --set sample.num_samples=64
    """
    config = load_section(params, "sample", SampleConfig, overrides)
    fabric = launch()
    made = sample(run, out, config, fabric=fabric, overwrite=overwrite)
    if fabric.is_global_zero:
        done = f"{made.drawn} drawn now" if made.drawn else "nothing to do"
        click.echo(f"{out}: {made.total} samples; {done}, fingerprint {made.fingerprint[:12]}")
