"""The options that say where frames are."""

import click

from pipeline.errors import FrameError
from pipeline.frames.given import Frames, named_frames
from stages.options import WORD, Command, skip_broken_option


class FramesType(click.ParamType):  # type: ignore[type-arg]
    """A folder of frames, a place in a bucket, a tar, or a pattern of tars."""

    name = "place"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Frames:
        """Returns the folder or the tars."""
        try:
            return named_frames(WORD.convert(value, param, ctx))
        except FrameError as error:
            self.fail(str(error), param, ctx)


FRAMES = FramesType()


def frames_options(command: Command) -> Command:
    """Adds `--frames` and `--skip-broken`."""
    return click.option(
        "--frames",
        type=FRAMES,
        required=True,
        help="Frame folder; or tars of frames or videos: a folder of them, one, a pattern such as "
        "'shards/{000..041}.tar', or s3://bucket/prefix. Of tars that --skip-broken leaves out "
        "nothing is used: mended later, they are new videos.",
    )(skip_broken_option(command))
