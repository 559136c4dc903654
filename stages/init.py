"""Write a params.yaml whose values are explained and fit your footage."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.errors import ConfigError
from pipeline.params.choose import DOWNSAMPLE, Choice, fitted, this_machine, without_footage
from pipeline.params.file import commented_yaml, yaml_line
from pipeline.params.schema import MODELINE, NAME, json_schema
from pipeline.params.survey import Seen, describe, look_at_folder
from pipeline.storage.files import keep_apart, to_json, write_bytes, write_text
from stages.options import FOLDER, OUT, cameras_option
from stages.sections import OWNERS, complete, owner

TITLE = (
    "Values of every stage, as `mebt init` writes them. Above each key stands what it means, after "
    "-> why it has its value. Change what you like; `--set section.key=value` overrides one."
)


def init(
    out: Path, footage: list[Seen], *, frames: int | None = None, overwrite: bool = False
) -> Choice:
    """Writes a params file for this footage, or for any if there is none to look at.

    Windows have so many frames, or as many as is usual for such footage.

    Beside it goes its schema, by which editors complete and check it.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out, or give --overwrite.")
    owners = {name: owner(name) for name in OWNERS}
    schema, content = out.parent / NAME, to_json(json_schema(owners))
    is_same = schema.is_file() and schema.read_bytes() == content
    if schema.exists() and not (is_same or overwrite):
        raise ConfigError(
            f"{schema} exists, and is not the schema of this version; choose another folder for "
            "--out, or give --overwrite."
        )
    choice = fitted(footage, this_machine(), frames) if footage else without_footage()
    values = complete(choice.values, where="mebt init")
    text = commented_yaml(values, owners, title=TITLE, reasons=choice.reasons)
    write_bytes(schema, content)
    write_text(out, f"{MODELINE}\n{text}")
    return choice


def next_commands(videos: Path | None, cameras: Sequence[str], params: Path) -> list[str]:
    """Returns the commands of the flow, to be typed after this one."""
    tokenizer = "--tokenizer tokenizer-run/tokenizer.safetensors"
    more = "" if params == Path("params.yaml") else f" --params {shlex.quote(str(params))}"
    chosen = (word for camera in cameras for word in ("--camera", camera))
    footage = shlex.join([str(videos or "my_videos"), *chosen])
    lines = [
        f"mebt extract --videos {footage} --out frames",
        "mebt fit-tokenizer --frames frames --out tokenizer-run",
        f"mebt tokenize --frames frames {tokenizer} --out tokens",
        "mebt train --tokens tokens --out run",
        "mebt sample --run run --out samples/tokens",
        f"mebt decode --tokens samples/tokens {tokenizer} --out samples/videos",
    ]
    return [line + more for line in lines]


def _whole_tokens(_: click.Context, __: click.Parameter, frames: int | None) -> int | None:
    if frames and frames % DOWNSAMPLE[0]:
        raise click.BadParameter(
            f"{frames} is no multiple of {DOWNSAMPLE[0]}, the frames of a token."
        )
    return frames


@click.command("init")
@click.option("--videos", type=FOLDER, help="Folder of videos to fit the values to.")
@cameras_option
@click.option(
    "--frames",
    type=click.IntRange(min=DOWNSAMPLE[0]),
    callback=_whole_tokens,
    help="Frames of a window, for long clips: a multiple of 4. Without it 16, or fewer if need be.",
)
@click.option(
    "--out",
    type=OUT,
    default=Path("params.yaml"),
    show_default=True,
    help="Params file to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file at --out.")
def command(
    videos: Path | None, cameras: tuple[str, ...], frames: int | None, out: Path, overwrite: bool
) -> None:
    """Write a params.yaml in which every key is explained.

    With --videos it reads the headers of the videos, and fits size, rate, window, codebook and
    batches to them and to this machine, and layers to the window; without, it writes values for any
    footage and a CPU. Beside it goes params.schema.json, by which editors complete and check it.

    \b
    Example:
      mebt init --videos my_videos
      mebt init --videos my_videos --frames 64
      mebt init --videos robot-set --camera top
      mebt init --out params.yaml
    """
    keep_apart(out, videos, inside=True)
    if cameras and not videos:
        raise click.UsageError("--camera is of videos.")
    if frames and not videos:
        raise click.UsageError("--frames is of videos.")
    footage, others = look_at_folder(videos, cameras) if videos else ([], [])
    choice = init(out, footage, frames=frames, overwrite=overwrite)
    if footage:
        click.echo(f"{videos}: {describe(footage)}")
    if others:
        click.echo(f"left aside, since they are no videos: {len(others)}, such as {others[0]}")
    for reason in dict.fromkeys(choice.reasons.values()):
        keys = [name for name, why in choice.reasons.items() if why == reason]
        click.echo(f"  {', '.join(_shown(name, choice) for name in keys)}: {reason}")
    click.echo(f"{out}: written, and {NAME} for editors. Next:")
    for line in next_commands(videos, cameras, out):
        click.echo(f"  {line}")


def _shown(name: str, choice: Choice) -> str:
    section, _, key = name.partition(".")
    return yaml_line(name, choice.values[section][key]).strip()
