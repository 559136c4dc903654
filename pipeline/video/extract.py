"""Videos -> frames below a folder, as files or in tars; goes on where an earlier call was cut off.

Each video that is done has a record of its own in `.extract/`, written after its frames.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.config import as_dict, fingerprint
from pipeline.errors import FrameError
from pipeline.frames.tars import SPLITS, Clip, Rejected, write_clips
from pipeline.progress import progress
from pipeline.rates import RECORD
from pipeline.storage.files import lock, read_json, remove, write_json, write_text
from pipeline.storage.outputs import list_differences, prepare_output
from pipeline.storage.places import Folder
from pipeline.video.beside import write_beside
from pipeline.video.clips import Source, extract_video, median_rate
from pipeline.video.sources import Known
from pipeline.video.tiles import ExtractConfig

PARTS = ".extract"
"""Folder in which work is, and its records; and names below it:"""
MADE_FROM, HASHES, STAGED, PACKED = "made_from.json", "hashes.json", "staged", "frames"
Format = Literal["folder", "webdataset"]
TAR_BYTES = 1 << 28
"""A tar that holds so much gets no further clip."""


@dataclass(frozen=True)
class Extracted:
    """What `extract` did."""

    num_videos: int
    clips: dict[str, int]
    num_frames: int
    fps: float | None
    """Frames a second of the middle one of all frames; None if nobody knows."""
    slowest: float | None
    fastest: float | None
    rejected: list[Rejected]
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    """What there is to say of videos: kind -> name -> text."""


def extract(
    sources: Sequence[Source],
    foreign: Sequence[Rejected],
    out: Path,
    config: ExtractConfig,
    *,
    format: Format = "folder",
    workers: int | None = None,
    known: Known | None = None,
    overwrite: bool = False,
) -> Extracted:
    """Writes frames of every source under `out`, then the lists `train.txt` and `test.txt`.

    Or, as `webdataset`, tars of clips: see `pipeline.frames.tars`. A video, or a tar of some, that
    was finished before and is still there is not decoded again; a video that cannot be decoded is
    rejected with its reason. So many `workers` videos are decoded at a time, None: one for each
    core. `known` hashes are kept for the next call. Raises FrameError if nothing is left, or if
    `out` was made of other videos or with other values and `overwrite` is not given.
    """
    made_from = {
        "format": format,
        "config": as_dict(config),
        "videos": {source.name: source.content for source in sources},
    }
    with lock(out):
        parts = out / PARTS
        prepare_output(
            Folder(out),
            f"{PARTS}/{MADE_FROM}",
            lambda: _differences(out, made_from),
            what="frame folder",
            error=FrameError,
            overwrite=overwrite,
        )
        write_json(parts / MADE_FROM, made_from)
        if known:
            files = dict(sorted(known.items()))  # They are learned in any order.
            write_json(parts / HASHES, {"files": files, "fingerprint": fingerprint(files)})
        with progress("extract", len(sources), "video") as advance:
            write = _write_folder if format == "folder" else _write_tars
            crew = Crew(out, config, workers or os.cpu_count() or 1)
            records = list(write(sources, out, crew, advance=advance))
        remove(parts / STAGED)
        write_beside(out, sources, records)
        return _finish(out, records, foreign, made_from)


@dataclass(frozen=True)
class Crew:
    """Extracts several videos at a time."""

    out: Path
    config: ExtractConfig
    workers: int

    def records(
        self, sources: Sequence[Source], folder: Path
    ) -> Generator[tuple[Source, dict[str, Any]]]:
        """Yields every video in order with its record, writing its frames below `folder`."""
        # Cores that are not busy with a video of their own help to decode and to save.
        threads = max(1, (os.cpu_count() or 1) // max(1, min(self.workers, len(sources))))

        def work(number: int, source: Source) -> tuple[Source, dict[str, Any]]:
            staged = self.out / PARTS / STAGED / str(number)
            return source, _extract_or_reject(source, folder, staged, self.config, threads)

        begun: deque[Future[tuple[Source, dict[str, Any]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number, source in enumerate(sources):
                    begun.append(pool.submit(work, number, source))
                    if len(begun) > 2 * self.workers:
                        yield begun.popleft().result()
                while begun:
                    yield begun.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


def _write_folder(
    sources: Sequence[Source], out: Path, crew: Crew, *, advance: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """Writes frames as files of their own; yields the record of every video."""

    def part(source: Source) -> Path:
        return out / PARTS / f"{fingerprint(source.name)}.json"

    todo = [source for source in sources if not _is_finished(part(source), out)]
    advance(len(sources) - len(todo))
    for source, record in crew.records(todo, out):
        _write_part(part(source), record)
        advance(1)
    for source in sources:
        yield _read_part(part(source))


def _write_tars(
    sources: Sequence[Source], out: Path, crew: Crew, *, advance: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """Writes tars, each group of videos into tars of its own; yields the record of every video.

    Frames lie as files for so long as a group is not complete: its clips are to be together.
    """
    packed = out / PARTS / PACKED
    number = done = 0
    while done < len(sources):
        part = out / PARTS / f"{number:05d}.json"
        if not _is_packed(part, out):
            remove(packed)
            records: list[dict[str, Any]] = []
            size = 0
            with closing(crew.records(sources[done:], packed)) as made:
                for _, record in made:
                    records.append(record)
                    frames = (frame for clip in record["kept"] for frame in clip["frames"])
                    size += sum((packed / frame).stat().st_size for frame in frames)
                    if size >= TAR_BYTES:
                        break
            tars = write_clips(packed, _clips(records), out, number, limit=TAR_BYTES)
            sizes = {tar.name: tar.stat().st_size for tar in tars}
            _write_part(part, {"videos": records, "tars": sizes})
            remove(packed)
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


def _extract_or_reject(
    source: Source, out: Path, staged: Path, config: ExtractConfig, threads: int
) -> dict[str, Any]:
    try:
        return extract_video(source, out, staged, config, threads=threads)
    except FrameError as error:
        return {"kept": [], "rejected": [(source.name, str(error))]}


def _differences(out: Path, made_from: dict[str, Any]) -> list[str]:
    """Lists how the work that `out` holds the beginning of differs from this."""
    found = read_json(out / PARTS / MADE_FROM, FrameError, "frame folder")
    theirs, ours = ({**record, "videos": None} for record in (found, made_from))
    return list_differences(theirs, ours) or ["other videos"] * (found != made_from)


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
    own = [Rejected(*pair) for record in records for pair in record["rejected"]]
    rejected = [*foreign, *own]
    if not kept:  # Why a video cannot be used tells more than what else lies there.
        why = first_reason([*own, *foreign])
        raise FrameError(f"no clip is usable of {len(records) + len(foreign)} files{why}.")
    for split in SPLITS if made_from["format"] == "folder" else ():
        lines = sorted(file for clip in kept if clip["split"] == split for file in clip["frames"])
        write_text(out / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    clips = {s: len({c["name"] for c in kept if c["split"] == s}) for s in SPLITS}
    rates = [record["rate"] for record in records if record["kept"] and record.get("rate")]
    notes: dict[str, dict[str, str]] = {}
    for name, record in zip(made_from["videos"], records, strict=True):
        for kind, text in record.get("notes", {}).items():
            notes.setdefault(kind, {})[name] = text
    summary = Extracted(
        num_videos=len(records),
        clips=clips,
        num_frames=sum(len(clip["frames"]) for clip in kept),
        fps=median_rate(records),
        slowest=min(rates, default=None),
        fastest=max(rates, default=None),
        rejected=rejected,
        notes=notes,
    )
    write_json(out / RECORD, {"made_from": made_from, **asdict(summary)})
    return summary


def first_reason(rejected: Sequence[Rejected]) -> str:
    """Gives an example of what was rejected, if anything was."""
    if not rejected:
        return ""
    return f"; for example {rejected[0].name}: {rejected[0].reason.rstrip('.')}"


def known_hashes(out: Path) -> Known:
    """Reads the hashes of videos that an earlier call wrote; what is damaged is forgotten."""
    path = out / PARTS / HASHES
    if not path.is_file():
        return {}
    try:
        record = read_json(path, FrameError, "frame folder")
    except FrameError:
        return {}
    files = record.get("files")
    return files if files and record.get("fingerprint") == fingerprint(files) else {}
