"""a trained model -> a page on this machine that shows it drawing."""

import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from mebt import CachedPredictor, MeBT, SampleConfig
from mebt.linear import round_weights
from mebt.live import next_frames
from mebt.sampling import MAX_GUIDANCE
from pipeline.errors import ConfigError, user_errors
from pipeline.pixels import Bytes, decode_tokens
from pipeline.play.server import PlayServer
from pipeline.play.show import Show
from pipeline.play.video import Draw, Tokens, Video, painted
from pipeline.precision import HALF, settle
from pipeline.rates import playing_rate
from pipeline.store.same_tokens import TokensOf, check_same_tokens
from pipeline.store.window import Window
from pipeline.training.signals import stop_requests
from pipeline.tuning import MEDIUM, keep_freed
from stages.keys import Controls, choose_controls
from stages.options import FILE, FOLDER, NumberRange, device_option
from stages.run_model import open_model
from tokenizer import load_tokenizer, tokens_identity

PAINTED = 8
"""Pixels of a token's side where there is no tokenizer."""


@dataclass(frozen=True)
class PlayConfig:
    """How a video is drawn while somebody watches."""

    steps: int = 8
    latent_frames: int | None = None
    """Drawn at a time; None: a quarter of a window, or one if the model knows actions."""
    temperature: tuple[float, float] = (1.0, 0.5)
    guidance: float = 1.0
    action: str | None = None
    """The state that keys choose; None: `action`, or the first one."""
    keys: tuple[str, ...] = ()
    """KEY=NUMBERS each; none: the usual ones."""
    rest: str | None = None
    """NUMBERS while no key is down; None: the usual ones."""


@dataclass(frozen=True)
class Screen:
    """What turns latent frames [n h w] into frames [T H W 3], and how large these are."""

    decode: Callable[[Tokens], Bytes]
    height: int
    width: int
    frames_each: int
    """Frames of a latent frame."""
    causal: bool


def open_show(run: Path, tokenizer: Path | None, config: PlayConfig, *, device: str) -> Show:
    """Opens the model of a run, to be watched.

    Raises PipelineError if there is no usable model in `run`, or if its tokens are another
    tokenizer's.
    """
    path, metadata, model = open_model(run, device)
    window = Window.read(path, metadata)
    grid = model.config.grid
    if config.guidance != 1 and not model.config.conditions:
        raise ConfigError(f"--guidance {config.guidance:g}: {path} knows no conditions.")
    controls = choose_controls(model.config, config.action, config.keys, config.rest)
    count = config.latent_frames or (1 if controls.actions else max(1, grid[0] // 4))
    if count >= grid[0] > 1:
        raise ConfigError(
            f"--latent-frames {count}: a window of {path} has {grid[0]}, and must begin with a "
            "known one."
        )
    screen = _screen(path, model, tokenizer, metadata.get("tokenizer") or None, window, device)
    draw = _drawer(model, controls, config, device)

    def open_video(seed: int, label: int | None) -> Video:
        return Video(
            *(draw, screen.decode, grid),
            count=count,
            causal=screen.causal,
            seed=seed,
            label=label,
        )

    fps, _ = playing_rate(None, window.fps)
    about: dict[str, Any] = {
        "name": str(run),
        "width": screen.width,
        "height": screen.height,
        "fps": fps if tokenizer else fps / (window.frames_each(grid[0]) or 1),
        "ahead": count * screen.frames_each,
        **controls.about(),
    }
    return Show(open_video, about)


def _screen(
    path: Path,
    model: MeBT,
    tokenizer: Path | None,
    made_by: str | None,
    window: Window,
    device: str,
) -> Screen:
    """Opens the tokenizer; `made_by` is that of the model's tokens, if it is known."""
    grid, num_codes = model.config.grid, model.config.codebook_size
    if tokenizer is None:
        height, width = (PAINTED * side for side in grid[1:])
        return Screen(
            lambda tokens: painted(tokens, num_codes, PAINTED), height, width, 1, window.causal
        )
    with user_errors():
        decoder = load_tokenizer(tokenizer, device)
    theirs = TokensOf(tokenizer, tokens_identity(decoder), decoder.config.codebook_size, grid)
    ours = TokensOf(path, made_by, num_codes, grid)
    advice = "Give the tokenizer of what the model was trained on."
    check_same_tokens(theirs, ours, advice, unknown_fits=True)
    each, *sides = decoder.config.downsample
    height, width = (side * down for side, down in zip(grid[1:], sides, strict=True))
    return Screen(
        lambda tokens: decode_tokens(decoder, tokens[None])[0],
        *(height, width, each, decoder.config.causal),
    )


def _drawer(
    model: MeBT, controls: Controls, config: PlayConfig, device: str
) -> Callable[[Tokens, Draw], Tokens]:
    """Returns what draws the latent frames that follow known ones."""
    kind = torch.device(device).type
    half = HALF.get(settle("auto", None, kind)[0])
    if half:
        round_weights(model, half)
    predict = CachedPredictor(model)

    def draw(known: Tokens, by: Draw) -> Tokens:
        hot, cold = config.temperature
        sampling = SampleConfig(
            seed=by.seed,
            draft_steps=config.steps,
            temperature=(hot * by.temperature, cold * by.temperature),
            guidance=config.guidance,
        )
        conditions = controls.conditions(by)
        predict.reset()
        with torch.autocast(kind, half, enabled=half is not None):
            new = next_frames(
                *(predict, model.config.grid, torch.from_numpy(known), sampling),
                count=len(by.actions) - len(known),
                number=by.number,
                conditions=conditions and conditions.changed(lambda x: x.to(device)),
                device=device,
            )
        drawn: Tokens = new.numpy()
        return drawn

    return draw


@click.command("play")
@click.option("--run", type=FOLDER, required=True, help="Run whose model is shown.")
@click.option(
    "--tokenizer", type=FILE, help="Tokenizer that made its tokens; without, these are painted."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8127,
    show_default=True,
    help="Where the page is, on this machine alone; 0: any port that is free.",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1024),
    default=PlayConfig.steps,
    show_default=True,
    help="Steps of each draw: fewer are faster, more are better.",
)
@click.option(
    "--latent-frames",
    type=click.IntRange(min=1),
    help="Latent frames drawn at a time: more are faster, fewer sooner there.  [default: a "
    "quarter of the model's window, or 1 if it knows actions]",
)
@click.option(
    "--temperature",
    type=NumberRange(0, 100),
    nargs=2,
    default=PlayConfig.temperature,
    show_default=True,
    help="In a draw's first step, and towards its last; the page's slider multiplies both.",
)
@click.option(
    "--guidance",
    type=NumberRange(0, MAX_GUIDANCE),
    default=PlayConfig.guidance,
    show_default=True,
    help="How much further labels and actions are followed; see sample.guidance.",
)
@click.option(
    "--action", help="Numbers of frames that keys choose.  [default: action, or the first]"
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY=NUMBERS",
    help="What a key chooses, as in ArrowUp=0,1; may be given several times.  [default: digits "
    "for kinds, arrows and WASD for two numbers]",
)
@click.option(
    "--rest", metavar="NUMBERS", help="What no key chooses.  [default: any kind, usual numbers]"
)
@device_option
def command(
    run: Path,
    tokenizer: Path | None,
    port: int,
    opened: bool,
    steps: int,
    latent_frames: int | None,
    temperature: tuple[float, float],
    guidance: float,
    action: str | None,
    keys: tuple[str, ...],
    rest: str | None,
    device: str,
) -> None:
    """Watch a model draw, live, in a browser.

    Serves a page on this machine alone, on which a video goes on for as long as it is watched:
    a few latent frames are drawn at a time, each time from as much of the last ones as a window
    holds. What is drawn depends on the seed, the temperature and --steps, and where the model knows
    labels and actions, on those that are chosen on the page and by keys. Ctrl-C ends it.

    \b
    Example:
      mebt play --run models/fish --tokenizer models/fish-64.safetensors --temperature 1 0.7
      mebt play --run run --tokenizer tokenizer.safetensors --key ArrowLeft=3 --key ArrowRight=1
    """
    keep_freed(MEDIUM)
    config = PlayConfig(steps, latent_frames, temperature, guidance, action, keys, rest)
    show = open_show(run, tokenizer, config, device=device)
    server = PlayServer(show, port)
    with stop_requests() as stopped:
        click.echo(f"{run}: {server.url} shows it; Ctrl-C ends it")
        if opened and not webbrowser.open(server.url):
            click.echo("there is no browser to open it in")
        server.serve(stopped)
    click.echo("closed")
