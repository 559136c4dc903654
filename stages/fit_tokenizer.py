"""frames -> a 3D VQGAN trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from jaxtyping import Int
from lightning_fabric import Fabric
from torch import Tensor

from pipeline.config import load_section
from pipeline.errors import ConfigError, FrameError
from pipeline.frame_list import source_of
from pipeline.frames.given import Frames, places_of
from pipeline.frames.listing import list_frames
from pipeline.precision import precision_of
from pipeline.storage.files import keep_apart, sha256_file
from pipeline.training.checkpoint import CHECKPOINTS, last_step
from pipeline.training.folder import open_run, recorded
from pipeline.training.log import Besides
from pipeline.training.loop import run_loop
from pipeline.video.films import find_frames
from pipeline.windows.plan import TokenizeConfig, WindowReader, plan_windows
from pipeline.windows.source import WindowSource
from pipeline.windows.verify import name_damaged, verify_frames
from stages.fitting import check_window
from stages.frame_options import frames_options
from stages.launch import Launch, fabric_options
from stages.options import (
    FILE,
    OUT,
    as_stored_option,
    log_options,
    overwrite_option,
    params_options,
    verify_option,
)
from stages.tokenizer_task import (
    FitTokenizerConfig,
    first_model,
    kept_tokens,
    open_init,
    open_lpips,
    tokenizer_task,
)
from tokenizer import VQGAN, VQGANConfig, identity, load_tokenizer
from tokenizer.losses import grey_levels
from tokenizer.weights import TOKENIZER_FILE

CUT_OFF_SHARE = 0.05
"""Of all values: at the ends of footage that nothing cuts off far fewer lie."""


@dataclass(frozen=True)
class Fitted:
    """What `fit_tokenizer` made."""

    path: Path
    steps: int
    identity: str
    notes: list[str]
    """What one might not expect of the frames."""


def fit_tokenizer(
    frames: Frames,
    out: Path,
    shape: VQGANConfig,
    windows: TokenizeConfig,
    config: FitTokenizerConfig,
    *,
    fabric: Fabric,
    skip_broken: bool = False,
    init: Path | None = None,
    lpips: Sequence[Path] = (),
    verify: bool = False,
    besides: Besides | None = None,
    overwrite: bool = False,
) -> Fitted | None:
    """Trains a 3D VQGAN on random windows of the train split; resumes if `out` has checkpoints.

    It begins from the weights of the tokenizer `init`, or from random ones. `lpips` are files of
    published weights. `verify` decodes every frame first; of damaged ones only the first process
    speaks, for the others there is nothing to return. Raises PipelineError if what is given and
    what is in `out` do not fit together, or a frame is damaged.
    """
    windows = config.windows(windows)  # They say how long they are; the run's values need not.
    config = replace(config, precision=precision_of(fabric), frames=None)
    check_window(shape, windows, "sections tokenizer, fit_tokenizer and tokenize")
    found = find_frames(frames, skip_broken=skip_broken)
    videos = found.videos
    plan = plan_windows(videos, windows)
    if not plan.num_windows("train"):
        raise ConfigError(f"{frames} has no window in its train split.")
    if verify and not verify_frames(videos, plan, windows, fabric):
        return None
    reader = WindowReader(videos, windows, cache_bytes=int(config.cache_gb * 2**30))
    train = WindowSource(plan, "train", reader)
    held_out = WindowSource(plan, "test" if plan.num_windows("test") else "train", reader)
    begin = None if init is None else open_init(init, shape)
    perceptual = open_lpips(lpips, config, windows.size, str(fabric.device))
    result, listed = out / TOKENIZER_FILE, list_frames(videos, frames)
    made_from = _made_from(shape, windows, source_of(listed), begin, lpips)
    task = tokenizer_task(
        *(train, held_out, shape, config, fabric, perceptual, result),
        made_from["source"],
        kept_tokens(config, begin),
    )
    with open_run(fabric, out, config, made_from, frames=listed, overwrite=overwrite):
        try:
            if last_step(out / CHECKPOINTS) < config.max_steps:
                _read_held_out(held_out, shape, config, fabric)
            steps = run_loop(
                *(fabric, *first_model(shape, config, fabric, begin), task, config, out),
                besides=besides,
            )
        except FrameError:
            if not name_damaged(videos, plan, windows, fabric, step=last_step(out / CHECKPOINTS)):
                return None
            raise
    notes = found.notes(as_stored=windows.as_stored) if fabric.is_global_zero else []
    return Fitted(result, steps, identity(load_tokenizer(result)), notes)


def _read_held_out(
    held_out: WindowSource, shape: VQGANConfig, config: FitTokenizerConfig, fabric: Fabric
) -> None:
    """Reads what will be measured, lest damaged frames come up in mid-training.

    Says so if its pixels do not fit the range that the tokenizer is made for.
    """
    rows = held_out.spread(config.validation_windows)
    levels = torch.stack([grey_levels(held_out.read([row])) for row in rows]).sum(0)
    if (line := range_line(levels, shape.pixel_range)) and fabric.is_global_zero:
        click.echo(f"fit-tokenizer: {line}", err=True)


def range_line(levels: Int[Tensor, "256"], pixel_range: Sequence[int]) -> str | None:
    """Says what of these counts of grey levels does not fit a range, if anything.

    Without a range footage is taken for cut off where many of its values are its highest or lowest.
    """
    low, high = pixel_range or (0, 255)
    total = int(levels.sum())
    if beyond := total - int(levels[low : high + 1].sum()):
        return (
            f"{beyond / total:.2%} of the values of held-out windows lie beyond "
            f"tokenizer.pixel_range {list(pixel_range)}; they will be cut off."
        )
    present = levels.nonzero().flatten().tolist()
    shares = {level: int(levels[level]) / total for level in (present[0], present[-1])}
    cut = {level: share for level, share in shares.items() if share >= CUT_OFF_SHARE}
    ends = [present[0] if present[0] in cut else 0, present[-1] if present[-1] in cut else 255]
    if pixel_range or ends == [0, 255] or len(present) == 1:
        return None
    said = " and ".join(f"{share:.0%} at grey level {level}" for level, share in cut.items())
    return (
        f"held-out windows seem to be cut off: of their values lie {said}, and none beyond. "
        f"With tokenizer.pixel_range={str(ends).replace(' ', '')} such ground flickers less."
    )


def _made_from(
    shape: VQGANConfig,
    windows: TokenizeConfig,
    source: str,
    begin: VQGAN | None,
    lpips: Sequence[Path],
) -> dict[str, Any]:
    """Returns what tells this run from another, beside its values."""
    return {
        "tokenizer": shape.recorded(),
        "windows": {key: getattr(windows, key) for key in ("frames", "stride", "hop", "size")}
        | ({"as_stored": True} if windows.as_stored else {}),
        "source": source,
        "init": None if begin is None else identity(begin),
        "lpips": sorted(map(sha256_file, lpips)),
    }


@click.command("fit-tokenizer")
@frames_options
@click.option("--out", type=OUT, required=True, help="Folder of the run to make or to go on with.")
@click.option("--init", type=FILE, help="Tokenizer whose weights to begin from, .safetensors.")
@click.option(
    "--lpips",
    type=FILE,
    multiple=True,
    help="Published weights of LPIPS on VGG16; give it once for each file that they lie in.",
)
@log_options
@as_stored_option("tokenize")
@params_options
@fabric_options
@verify_option
@overwrite_option
def command(
    frames: Frames,
    skip_broken: bool,
    out: Path,
    init: Path | None,
    lpips: tuple[Path, ...],
    plots: Path | None,
    loggers: tuple[str, ...],
    as_stored: tuple[str, ...],
    params: Path,
    overrides: tuple[str, ...],
    launch: Launch,
    verify_frames: bool,
    overwrite: bool,
) -> None:
    """Train a 3D VQGAN on your own frames.

    Writes OUT/tokenizer.safetensors, and checkpoints to go on from after a stop. Values: sections
    `tokenizer` (its shape), `fit_tokenizer` (training) and `tokenize` (the windows) of the params
    file. --init fine-tunes a tokenizer that there is; section `tokenizer` must be of its shape.
    With fit_tokenizer.decoder_only=true tokens stay what they are: stores and models of them go on.
    --plots and --logger copy the log, for `dvc plots`, TensorBoard and others.
    Discriminators and LPIPS take part if their weights in `fit_tokenizer` are above 0. A signal
    stops it after the step at hand with exit code 75: run it again to go on. So does a damaged
    frame with exit code 1, by name: mend it, and the same command goes on.

    \b
    Example:
      mebt fit-tokenizer --frames frames --out tokenizer-run --set fit_tokenizer.max_steps=5000
    """
    keep_apart(out, *places_of(frames), init, *lpips, params)
    shape = load_section(params, "tokenizer", VQGANConfig, overrides)
    windows = load_section(params, "tokenize", TokenizeConfig, (*overrides, *as_stored))
    config = load_section(params, "fit_tokenizer", FitTokenizerConfig, overrides)
    key = "fit_tokenizer.precision"
    fabric = launch(launch.settle(key, config.precision, recorded(out, "precision")))
    fitted = fit_tokenizer(
        frames,
        out,
        shape,
        windows,
        config,
        fabric=fabric,
        skip_broken=skip_broken,
        init=init,
        lpips=lpips,
        verify=verify_frames,
        besides=Besides(plots, loggers),
        overwrite=overwrite,
    )
    if fitted and fabric.is_global_zero:
        for note in fitted.notes:
            click.echo(note)
        done = f"{fitted.steps} steps" if fitted.steps else "nothing to do"
        click.echo(f"{fitted.path}: {done}, identity {fitted.identity[:12]}")
