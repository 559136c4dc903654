"""Films in tars of others, frame by frame. Worker processes import it: no torch.

What decodes a film is given: this room reads images alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median_low

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipeline.errors import FrameError
from pipeline.frames.tars import FilmFile, Rejected, TarFrame, reject
from pipeline.rates import DIFFERENT, MAX_FPS
from pipeline.storage.files import printable
from pipeline.storage.tars import Member

MAX_FRAMES = 1 << 20
"""Of one film, ten hours at 30 a second: each is listed."""
NOT_AS_STORED = ("cropped", "aspect", "turned")
"""Kinds of notes on what is not done to frames that are read as stored."""
EXTRACT = "`mebt extract --videos` makes frames of it"


@dataclass(frozen=True, eq=False)
class Film:
    """A video inside a tar, and what a look at it told."""

    read: Callable[..., Iterator[NDArray[np.uint8]]]
    """Takes `as_stored`; yields all its frames [H, W, 3]. Can be sent to another process."""
    num_frames: int
    sha256: str
    rate: float | None
    """Frames a second."""
    notes: Mapping[str, str]
    """What a user should know, by kind."""


@dataclass(frozen=True)
class FilmFrame(TarFrame):
    """A frame of a film: its path is that of an image in a folder of the film's name."""

    film: Film
    number: int

    def __str__(self) -> str:
        return f"{self.member}, frame {self.number}"


LookAtFilm = Callable[[Member, str], Film]
"""Looks at a video, given its extension. Raises FrameError, naming it, if it is none of use."""


def open_films(
    files: Sequence[Path | TarFrame], look: LookAtFilm
) -> tuple[list[Path | TarFrame], list[Rejected]]:
    """Puts the frames of each film of a split in its place; rejects films that are of no use.

    Each is named by its tar and its key, as by `extract`: so a name does not depend on others.
    """
    films = [file for file in files if isinstance(file, FilmFile)]
    opened: list[Path | TarFrame] = [file for file in files if not isinstance(file, FilmFile)]
    rejected: list[Rejected] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        looks = pool.map(lambda film: _look(film, look), films)
        for file, found in tqdm(
            zip(films, looks, strict=True), "look into films", len(films), leave=False, disable=None
        ):
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            folder = _name(file)
            opened += [
                FilmFrame(file.member, folder / f"{folder.name}_{number:05d}.png", found, number)
                for number in range(found.num_frames)
            ]
    finally:
        pool.shutdown(cancel_futures=True)
    return opened, rejected


def _name(file: FilmFile) -> PurePosixPath:
    key = file.path.with_suffix("").parts
    return PurePosixPath("-".join((PurePosixPath(file.member.tar).stem, *key)))


def _look(file: FilmFile, look: LookAtFilm) -> Film | Rejected:
    name = _name(file)
    try:
        str(name).encode()
        film = look(file.member, file.path.suffix)
    except UnicodeEncodeError:
        return reject(name, "its name is not UTF-8")
    except FrameError as error:
        return reject(name, str(error))
    if film.num_frames > MAX_FRAMES:
        why = f"{film.num_frames:,} frames are more than {MAX_FRAMES:,}; {EXTRACT}"
        return reject(name, why)
    return film if film.num_frames else reject(name, f"{file.member} holds no frame")


def film_images(frames: Sequence[FilmFrame], *, as_stored: bool) -> Iterator[Image.Image]:
    """Yields frames of one film, in order: it is decoded once, from its begin to the last of them.

    Raises FrameError, naming the film, where it is missing or damaged, or if it ends before or
    after the last of the frames that were listed.
    """
    member, film = frames[0].member, frames[0].film
    decoded = film.read(as_stored=as_stored)
    listed = f"{film.num_frames:,} frames that it says it has; {EXTRACT}"
    count = 0
    pixels: NDArray[np.uint8] | None = None
    for frame in frames:
        while count <= frame.number:
            pixels = next(decoded, None)
            if pixels is None:
                raise FrameError(f"{member} ends after {count:,} of the {listed}.")
            count += 1
        assert pixels is not None
        yield Image.fromarray(pixels)
    if count == film.num_frames and next(decoded, None) is not None:
        raise FrameError(f"{member} goes on after the {listed}.")


def films_rate(firsts: Sequence[object]) -> float | None:
    """Returns the frames a second of the middle one of videos, by the first frame of each.

    None if that is not known of all, as they are no films.
    """
    rates = [first.film.rate for first in firsts if isinstance(first, FilmFrame)]
    known = [rate for rate in rates if rate and rate < MAX_FPS]
    return median_low(known) if known and len(known) == len(firsts) else None


def describe_films(firsts: Sequence[tuple[str, object]], *, as_stored: bool) -> list[str]:
    """Says what one might not expect of films, a line a kind, by name and first frame of videos."""
    films = [(name, first.film) for name, first in firsts if isinstance(first, FilmFrame)]
    notes: dict[str, list[str]] = {}
    for name, film in films:
        for kind, text in film.notes.items():
            if not as_stored or kind not in NOT_AS_STORED:
                notes.setdefault(kind, []).append(f"{printable(name)}: {text}")
    said = []
    for first, *more in notes.values():
        others = f" (and {len(more)} more videos alike)" if more else ""
        said.append(f"{first}{others}")
    rates = [film.rate for _, film in films if film.rate]
    if rates and max(rates) > DIFFERENT * min(rates):
        said.append(
            f"videos run at {min(rates):.5g} to {max(rates):.5g} frames a second, and the same "
            "motion looks faster in some; extract.fps gives all of them one rate"
        )
    return said
