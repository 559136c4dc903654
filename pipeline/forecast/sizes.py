"""Which sizes suit footage that is not square, and which would make its frames larger."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.params.choose import DOWNSAMPLE, Choice
from pipeline.params.survey import Seen
from pipeline.size import Size, centre, sides
from pipeline.video.tiles import ExtractConfig

STEP = DOWNSAMPLE[1]


def keep_shape(choice: Choice, footage: Sequence[Seen], **now: Size) -> None:
    """Turns sizes of a choice into [height, width], shaped as most footage, where those are set.

    `now` holds what is set, named `section__key`.
    """
    shapes = Counter((video.height, video.width) for video in footage)
    for name, set_now in now.items():
        section, _, key = name.partition("__")
        why = choice.reasons.get(f"{section}.{key}")
        if why and isinstance(set_now, tuple):
            (height, width), _ = shapes.most_common(1)[0]
            short = choice.values[section][key]
            scaled = (side * short // min(height, width) for side in (height, width))
            size = [max(STEP, side // STEP * STEP) for side in scaled]
            choice.set(f"{why} Most are {width}x{height}.", **{name: size})


def enlarged(footage: Sequence[Seen], size: Size, extract: ExtractConfig | None) -> Iterator[str]:
    """Says of what frames are made larger, which shows nothing more.

    `size` is that of windows; without `extract` footage is frames, of which they are cut out.
    """
    shapes, first, name = [(v.width, v.height) for v in footage], size, "tokenize.size"
    if extract is not None:
        first, name = extract.size, "extract.size"
        if _grows(*sides(extract.size)[::-1], size):
            yield f"frames of extract.size {extract.size} are enlarged to tokenize.size {size}"
        if extract.tile:
            shapes = [sides(extract.tile)[::-1]] * len(footage)
    if count := sum(_grows(*shape, first) for shape in shapes):
        yield f"frames of {count:,} of {len(shapes):,} videos are enlarged to {name} {first}"


def _grows(width: int, height: int, size: Size) -> bool:
    tall, wide = sides(size)
    left, top, right, bottom = centre(width, height, size)
    return right - left < wide or bottom - top < tall
