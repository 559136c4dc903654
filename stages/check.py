"""Say what footage or tokens hold, and what they will take, before a day is spent on them."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import torch

from pipeline.config import load_params, with_overrides
from pipeline.errors import FrameError
from pipeline.forecast.record import advice
from pipeline.forecast.told import told
from pipeline.frames.given import Frames, expand, places_of
from pipeline.params.choose import Choice, fitted, fitted_to_machine, this_machine
from pipeline.params.survey import Seen, look_at_folder
from pipeline.storage.files import keep_apart, write_json
from pipeline.storage.places import Place
from pipeline.video.filters import check_filters
from stages.forecast import Values, check_footage, check_tokens, look_at_footage
from stages.frame_options import FRAMES
from stages.options import (
    FILE,
    OUT,
    PLACE,
    WORD,
    cameras_option,
    device_option,
    params_options,
    skip_broken_option,
)
from stages.sections import complete
from stages.trial import Trials

CHOSEN = "what mebt init would choose"
"""Where values are from without a params.yaml."""


def _chosen(videos: Sequence[Place], cameras: Sequence[str]) -> Choice:
    """Returns what `mebt init` would choose: for a folder of videos, or else for this machine."""
    machine = this_machine()
    footage: list[Seen] = []
    with suppress(FrameError):  # Of tars, which hold several videos each, it knows none.
        if len(videos) == 1 and isinstance(videos[0], Path) and videos[0].is_dir():
            footage, _ = look_at_folder(videos[0], cameras)
    return fitted(footage, machine) if footage else fitted_to_machine(machine)


@click.command("check")
@click.option(
    "--videos",
    type=WORD,
    multiple=True,
    help="Folder of videos or of tars, a tar, a pattern of tars, as for `mebt extract`.",
)
@cameras_option
@click.option(
    "--frames", type=FRAMES, help="Frame folder, or tars of frames or videos, as for `tokenize`."
)
@skip_broken_option
@click.option("--tokens", type=PLACE, help="Token store.")
@click.option(
    "--tokenizer", type=FILE, help="Tokenizer to encode with; without, one as fast is timed."
)
@click.option("--json", "out", type=OUT, help="File to write all that was found to.")
@params_options
@device_option
def command(
    videos: tuple[str, ...],
    cameras: tuple[str, ...],
    skip_broken: bool,
    frames: Frames | None,
    tokens: Place | None,
    tokenizer: Path | None,
    out: Path | None,
    params: Path,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Say what footage holds and what it will take, before a day is spent on it.

    Counts clips, rejects, still and near-duplicate ones; counts windows at each tokenize.hop as
    `tokenize` will plan them; foretells the bytes of the token store, and times a few steps of
    encoding and training on this device. Ends with the params that suit. Writes nothing but what
    --json asks for. Values: the sections of the params file; without one, those that `mebt init`
    would choose for the videos or frames; of tars of videos, and of tokens, for this machine alone.

    \b
    Example:
      mebt check --videos my_videos
      mebt check --videos 'shards/{000..041}.tar' --skip-broken
      mebt check --frames frames --tokenizer tokenizer-run/tokenizer.safetensors
      mebt check --tokens tokens --json check.json
    """
    if sum(map(bool, (videos, frames, tokens))) != 1:
        raise click.UsageError("give one of --videos, --frames and --tokens.")
    if tokens and tokenizer:
        raise click.UsageError("--tokenizer is of no use with --tokens.")
    if cameras and not videos:
        raise click.UsageError("--camera is of videos.")
    if skip_broken and tokens:
        raise click.UsageError("--skip-broken is of videos and frames.")
    places = expand(videos)
    if out is not None:
        keep_apart(out, *places, *places_of(frames), tokens, tokenizer, params, inside=True)
    is_chosen = params == Path("params.yaml") and not params.exists()
    where = CHOSEN if is_chosen else str(params)
    if is_chosen:
        sections = with_overrides(_chosen(places, cameras).values, overrides)
    else:
        sections = load_params(params, overrides)
    values = Values.of(sections, where)
    check_filters(values.extract.filters)
    trials = Trials(torch.device(device).type)
    if tokens:
        found, choice = check_tokens(tokens, values, trials)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            footage, choice = look_at_footage(
                *(places, frames, values, trials, Path(scratch)),
                cameras=cameras,
                skip_broken=skip_broken,
            )
            if is_chosen and choice and frames:  # What `init` would choose for videos is known.
                sections = with_overrides(choice.values, overrides)
                values = Values.of(sections, where)
            found = check_footage(footage, choice, frames, tokenizer, values, trials, Path(scratch))
    now = complete(sections, where=where)
    record = {
        **found,
        "values": where,
        "device": trials.kind,
        "costs": trials.costs,
        "caches": trials.caches,
        "not_measured": trials.not_measured,
        "params": advice(choice, now) if choice else [],
    }
    if out is not None:
        write_json(out, record)
    for line in told(record):
        click.echo(line)
