"""videos -> frame folders in the published naming, split into train and test by time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.clip_tars import Clip, write_clips
from pipeline.config import as_dict, fingerprint, load_section
from pipeline.errors import FrameError
from pipeline.files import (
    contents,
    keep_apart,
    lock,
    read_json,
    remove,
    sha256_file,
    write_json,
    write_text,
)
from pipeline.frames import SPLITS, Rejected, crop_resize, files_below
from pipeline.video import (
    ExtractConfig,
    Frame,
    motion,
    moving_shapes,
    read_video,
    tiles,
)
from stages.options import FOLDER, OUT, overwrite_option, params_options

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif")
RECORD = "extract.json"
PARTS, MADE_FROM, STAGED = ".extract", "made_from.json", "frames"
Format = Literal["folder", "webdataset"]
TAR_BYTES = 1 << 28
"""A tar that holds so much gets no further clip."""
WHOLE_CLIP_BUFFER = 64
"""Frames of a clip without a fixed length that are held before they are written."""
SYNTHETIC_FRAMES = 64


@dataclass(frozen=True)
class Source:
    """One video: its name, what identifies its content, and how to read it."""

    name: str
    content: str
    read: Callable[[], Iterator[Frame]]


@dataclass(frozen=True)
class Extracted:
    """What `extract` did."""

    num_videos: int
    clips: dict[str, int]
    num_frames: int
    rejected: list[Rejected]


def find_videos(
    folder: Path, config: ExtractConfig, *, out: Path
) -> tuple[list[Source], list[Rejected]]:
    """Lists the videos under `folder`; every other file is rejected with a reason.

    What lies in `out` is left out: it was made, not given. Every video has a name of its own.
    """
    if folder.resolve().is_relative_to(out.resolve()):
        raise FrameError(f"{out} holds the videos themselves; choose another --out.")
    sources: list[Source] = []
    rejected = []
    taken: set[str] = set()
    for path, reason in files_below(folder, folder, suffixes=VIDEOS, skip=[out]):
        relative = path.relative_to(folder)
        if not reason and path.suffix.lower() not in VIDEOS:
            reason = "no video by its extension"
        if reason:
            rejected.append(Rejected(str(relative), reason))
            continue
        name = _free_name(relative, taken)
        taken.add(name)
        read = partial(read_video, path, fps=config.fps, filters=config.filters)
        sources.append(Source(name, sha256_file(path), read))
    return sources, rejected


def _free_name(relative: Path, taken: set[str]) -> str:
    """Names a video after its path, as shortly as can be without a name that is taken."""
    joined = "-".join(relative.with_suffix("").parts)
    # A line break in a name would break a line of train.txt.
    plain = "".join(c if c.isprintable() and c != " " else "_" for c in joined)
    full = plain + relative.suffix.replace(".", "-")
    names = itertools.chain([plain, full], (f"{full}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in taken)


def synthetic_videos(count: int, config: ExtractConfig) -> list[Source]:
    """Lists `count` seeded videos of moving shapes."""
    return [
        Source(
            f"shapes{i:05d}",
            f"moving shapes {config.seed} {i}",
            partial(moving_shapes, SYNTHETIC_FRAMES, config.size, seed=config.seed * 2**20 + i),
        )
        for i in range(count)
    ]


def cut_in_time(num_frames: int, config: ExtractConfig) -> Iterator[tuple[str, int, int]]:
    """Cuts a video's time into clips (split, first, stop); train comes before test."""
    first_test = num_frames - round(num_frames * config.test_share)
    for split, start, stop in (("train", 0, first_test), ("test", first_test, num_frames)):
        length = config.clip_frames or max(1, stop - start)
        for first in range(start, stop, length):
            yield split, first, min(first + length, stop)


def _save(path: Path, frame: Frame, box: tuple[int, int, int, int], size: int) -> None:
    """Writes a tile of a frame, resized."""
    left, top, right, bottom = box
    # PNG level 1: frames are read more often than they are sent anywhere.
    settings: dict[str, Any] = {"quality": 95} if path.suffix == ".jpg" else {"compress_level": 1}
    crop_resize(Image.fromarray(frame[top:bottom, left:right]), size).save(path, **settings)


def _extract_video(source: Source, out: Path, config: ExtractConfig) -> dict[str, Any]:
    """Writes the clips of one video. Returns the record of what was kept and rejected."""
    shapes = [frame.shape for frame in source.read()]
    if not shapes:
        raise FrameError(f"{source.name} holds no frame.")
    height, width = shapes[0][:2]
    # Whatever is wrong with a video shows before its first frame is written.
    if other := next((shape for shape in shapes if shape != shapes[0]), None):
        raise FrameError(
            f"{source.name} changes its size from {width}x{height} to {other[1]}x{other[0]}."
        )
    boxes = tiles(width, height, config)
    if not boxes:
        raise FrameError(f"{source.name} is {width}x{height}, smaller than tile {config.tile}.")
    kept: list[dict[str, Any]] = []
    rejected: list[tuple[str, str]] = []
    frames = source.read()
    with ThreadPoolExecutor() as pool:
        for split, first, stop in cut_in_time(len(shapes), config):
            moment = f"-f{first:05d}" if config.clip_frames else ""
            for start in range(first, stop, config.clip_frames or WHOLE_CLIP_BUFFER):
                numbers = range(start, min(start + (config.clip_frames or WHOLE_CLIP_BUFFER), stop))
                pixels = list(itertools.islice(frames, len(numbers)))
                moves = motion(pixels) if config.min_motion else np.ones((height, width), np.bool_)
                writes = []
                for suffix, box in boxes.items():
                    name = source.name + suffix + moment
                    left, top, right, bottom = box
                    moved = moves[top:bottom, left:right].mean()
                    if moved < config.min_motion:
                        reason = f"still: {moved:.4f} of its pixels move"
                        rejected.append((f"{split}/{name}", reason))
                        continue
                    folder = out / split / name
                    folder.mkdir(parents=True, exist_ok=True)
                    paths = [folder / f"{name}_{n:05d}.{config.image}" for n in numbers]
                    writes += [
                        pool.submit(_save, path, frame, box, config.size)
                        for path, frame in zip(paths, pixels, strict=True)
                    ]
                    files = [str(path.relative_to(out)) for path in paths]
                    kept.append({"split": split, "name": name, "frames": files})
                for write in writes:
                    write.result()
    return {"kept": kept, "rejected": rejected}


def extract(
    sources: Sequence[Source],
    foreign: Sequence[Rejected],
    out: Path,
    config: ExtractConfig,
    *,
    format: Format = "folder",
    overwrite: bool = False,
) -> Extracted:
    """Writes frames of every source under `out`, then the lists `train.txt` and `test.txt`.

    Or, as `webdataset`, tars of clips: see `pipeline.clip_tars`. A video, or a tar of some, that
    was finished before and is still there is not decoded again; a video that cannot be decoded is
    rejected with its reason. Raises FrameError if nothing is left, or if `out` was made of other
    videos or with other values and `overwrite` is not given.
    """
    made_from = {
        "format": format,
        "config": as_dict(config),
        "videos": {source.name: source.content for source in sources},
    }
    with lock(out):
        parts = out / PARTS
        if not _continues(out, made_from, overwrite=overwrite):
            parts.mkdir(exist_ok=True)
            # A video's record goes before its frames; that extract made the folder stays known.
            old = [path for path in parts.iterdir() if path.name != MADE_FROM]
            for path in [*old, *(path for path in contents(out) if path != parts)]:
                remove(path)
            write_json(parts / MADE_FROM, made_from)
        with tqdm(total=len(sources), desc="extract", unit="video", disable=None) as bar:
            write = _write_folder if format == "folder" else _write_tars
            records = list(write(sources, out, config, advance=bar.update))
        return _finish(out, records, foreign, made_from)


def _write_folder(
    sources: Sequence[Source], out: Path, config: ExtractConfig, *, advance: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """Writes frames as files of their own; yields the record of every video."""
    for source in sources:
        part = out / PARTS / f"{fingerprint(source.name)}.json"
        if not _is_finished(part, out):
            _write_part(part, _extract_or_reject(source, out, config))
        yield _read_part(part)
        advance(1)


def _write_tars(
    sources: Sequence[Source], out: Path, config: ExtractConfig, *, advance: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """Writes tars, each group of videos into tars of its own; yields the record of every video.

    Frames lie as files for so long as a group is not complete: its clips are to be together.
    """
    staged = out / PARTS / STAGED
    number = done = 0
    while done < len(sources):
        part = out / PARTS / f"{number:05d}.json"
        if not _is_packed(part, out):
            remove(staged)
            records: list[dict[str, Any]] = []
            size = 0
            for source in sources[done:]:
                records.append(_extract_or_reject(source, staged, config))
                frames = (frame for clip in records[-1]["kept"] for frame in clip["frames"])
                size += sum((staged / frame).stat().st_size for frame in frames)
                if size >= TAR_BYTES:
                    break
            tars = write_clips(staged, _clips(records), out, number, limit=TAR_BYTES)
            sizes = {tar.name: tar.stat().st_size for tar in tars}
            _write_part(part, {"videos": records, "tars": sizes})
            remove(staged)
        records = _read_part(part)["videos"]
        yield from records
        advance(len(records))  # Of a group at once: a kill loses no less.
        done += len(records)
        number += 1


def _write_part(part: Path, record: dict[str, Any]) -> None:
    """Writes that a video, or a group of videos, is done."""
    record = {**record, "part": part.stem}  # So that no record passes for another's.
    write_json(part, {**record, "fingerprint": fingerprint(record)})


def _read_part(part: Path) -> dict[str, Any]:
    """Reads what `_write_part` wrote. Raises FrameError if it was changed."""
    record = read_json(part, FrameError, "frame folder")
    seal = record.pop("fingerprint", None)  # Of the first versions there is neither.
    if seal not in (None, fingerprint(record)) or record.pop("part", part.stem) != part.stem:
        raise FrameError(f"{part} is damaged; delete it to have its frames made again.")
    return record


def _is_packed(part: Path, out: Path) -> bool:
    """Says whether the tars of a group were written before and are still there."""
    if not part.exists():
        return False
    tars = _read_part(part)["tars"]
    return all(
        (out / name).is_file() and (out / name).stat().st_size == size
        for name, size in tars.items()
    )


def _clips(records: Sequence[dict[str, Any]]) -> list[Clip]:
    """Joins the pieces in which clips were extracted."""
    clips: dict[tuple[str, str], list[str]] = {}
    for clip in (clip for record in records for clip in record["kept"]):
        clips.setdefault((clip["split"], clip["name"]), []).extend(clip["frames"])
    return [(split, frames) for (split, _), frames in clips.items()]


def _extract_or_reject(source: Source, out: Path, config: ExtractConfig) -> dict[str, Any]:
    try:
        return _extract_video(source, out, config)
    except FrameError as error:
        return {"kept": [], "rejected": [(source.name, str(error))]}


def _continues(out: Path, made_from: dict[str, Any], *, overwrite: bool) -> bool:
    """Says whether `out` holds the beginning of the same work; refuses another's."""
    path = out / PARTS / MADE_FROM
    if not path.exists():
        if others := [file for file in contents(out) if file.name != PARTS]:
            raise FrameError(
                f"{out} holds {others[0].name} but no {PARTS}/{MADE_FROM}, so extract did not make "
                "it; choose another --out."
            )
        return False
    found = read_json(path, FrameError, "frame folder")
    if found == made_from:
        return True
    if overwrite:
        return False
    had = {"format": found.get("format"), **found.get("config", {})}
    different = [
        f"{key} {had.get(key)!r} instead of {value!r}"
        for key, value in {"format": made_from["format"], **made_from["config"]}.items()
        if had.get(key) != value
    ] or ["other videos"]
    raise FrameError(
        f"{out} was made with {different[0]}; choose another --out, or give --overwrite."
    )


def _is_finished(part: Path, out: Path) -> bool:
    """Says whether a video was done before and all its frames are still there."""
    if not part.exists():
        return False
    kept = _read_part(part)["kept"]
    return all((out / file).is_file() for clip in kept for file in clip["frames"])


def _finish(
    out: Path,
    records: Sequence[dict[str, Any]],
    foreign: Sequence[Rejected],
    made_from: dict[str, Any],
) -> Extracted:
    kept = [clip for record in records for clip in record["kept"]]
    rejected = [*foreign, *(Rejected(*pair) for record in records for pair in record["rejected"])]
    if not kept:
        why = f"; for example {rejected[0].name}: {rejected[0].reason}" if rejected else ""
        raise FrameError(f"no clip is usable of {len(records)} videos{why}.")
    for split in SPLITS if made_from["format"] == "folder" else ():
        lines = sorted(file for clip in kept if clip["split"] == split for file in clip["frames"])
        write_text(out / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    clips = {s: len({c["name"] for c in kept if c["split"] == s}) for s in SPLITS}
    summary = Extracted(
        num_videos=len(records),
        clips=clips,
        num_frames=sum(len(clip["frames"]) for clip in kept),
        rejected=rejected,
    )
    write_json(out / RECORD, {"made_from": made_from, **asdict(summary)})
    return summary


@click.command("extract")
@click.option("--videos", type=FOLDER, help="Folder of videos: anything FFmpeg reads.")
@click.option("--synthetic", type=click.IntRange(min=1), help="Draw this many videos instead.")
@click.option("--out", type=OUT, required=True, help="Frame folder to make.")
@click.option(
    "--format",
    type=click.Choice(get_args(Format)),
    default="folder",
    show_default=True,
    help="Images in folders, or tars in which each clip is a sample.",
)
@params_options
@overwrite_option
def command(
    videos: Path | None,
    synthetic: int | None,
    out: Path,
    format: Format,
    params: Path,
    overrides: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turn videos into frame folders, split into train and test by time.

    Writes OUT/train.txt and OUT/test.txt, which list the frames, and OUT/extract.json, which says
    what became of every video. With --format webdataset, the frames are in WebDataset tars
    instead, for disks that are slow with many files; `tokenize` makes the same tokens of them.
    Values: section `extract` of the params file.

    \b
    Example:
      mebt extract --videos my_videos/ --out frames --set extract.size=64
      mebt extract --synthetic 64 --out frames
      mebt extract --videos my_videos/ --out frames --format webdataset
    """
    keep_apart(out, videos, params, inside=True)
    config = load_section(params, "extract", ExtractConfig, overrides)
    if (videos is None) == (synthetic is None):
        raise click.UsageError("give either --videos or --synthetic.")
    if videos is not None:
        sources, foreign = find_videos(videos, config, out=out)
    else:
        sources, foreign = synthetic_videos(synthetic or 0, config), []
    if not sources:
        raise FrameError(
            f"{videos} holds no video ({len(foreign)} other files); known: {', '.join(VIDEOS)}."
        )
    made = extract(sources, foreign, out, config, format=format, overwrite=overwrite)
    for rejected in made.rejected[:5]:
        click.echo(f"rejected {rejected.name}: {rejected.reason}")
    if len(made.rejected) > 5:
        click.echo(f"rejected {len(made.rejected) - 5} more: see {out / RECORD}")
    click.echo(
        f"{out}: {made.num_videos} videos in; kept {made.clips['train']} train and "
        f"{made.clips['test']} test clips ({made.num_frames:,} frames), "
        f"rejected {len(made.rejected)}"
    )
