"""The options that say where frames are."""

import click

from pipeline.errors import FrameError
from pipeline.frames.given import Frames, named_frames
from stages.options import Command


class FramesType(click.ParamType):  # type: ignore[type-arg]
    """A folder of frames, a place in a bucket, a tar, or a pattern of tars."""

    name = "place"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Frames:
        """Returns the folder or the tars."""
        try:
            return named_frames(value)
        except FrameError as error:
            self.fail(str(error), param, ctx)


FRAMES = FramesType()


def frames_options(command: Command) -> Command:
    """Adds `--frames` and `--skip-broken`."""
    command = click.option(
        "--skip-broken",
        is_flag=True,
        help="Go on without broken tars, which are named and counted. Nothing of them is used, as "
        "if they were not there: mended later, they are new videos.",
    )(command)
    return click.option(
        "--frames",
        type=FRAMES,
        required=True,
        help="Frame folder; or tars of frames: a folder of them, one, a pattern such as "
        "'shards/{000..041}.tar', or s3://bucket/prefix.",
    )(command)
