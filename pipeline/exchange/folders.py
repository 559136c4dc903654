"""Ids in one file, in a folder of a file for each video, or in tars of an `.npy` for each key."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.condition_files import VideoTexts
from pipeline.errors import PipelineError
from pipeline.exchange.arrays import FileArray, open_npy, open_safetensors
from pipeline.exchange.ids import Ids, ImportConfig, Video, check_ids
from pipeline.sample_texts import KINDS, add_text
from pipeline.storage.files import describe_link, printable
from pipeline.storage.tars import Member, read_samples

OPENERS = {".npy": open_npy, ".safetensors": open_safetensors}
TAR = ".tar"


def within(folder: Path, path: Path) -> Path:
    """Returns a path. Raises PipelineError if it is a link that leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PipelineError(describe_link(path, folder))
    return path


def files_below(folder: Path) -> Iterator[Path]:
    """Yields files and links to folders below a folder, by name, but for hidden ones.

    Raises PipelineError at a link that leads out of it.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*files, *links]):
            if not name.startswith("."):
                yield within(folder, Path(root) / name)


def open_array(path: Path, config: ImportConfig) -> Ids:
    """Opens an `.npy` or `.safetensors` alone: windows [N, t, h, w], or a video [T, h, w]."""
    array = OPENERS.get(path.suffix, open_npy)(path)
    if check_ids(array, ("N t h w", "T h w"), config) == "T h w":
        return _of_videos(path, [Video(path.name, array, 0, array.shape[0])], ())
    t, h, w = array.shape[1:4]
    video = Video(path.name, array, 0, array.shape[0])
    return Ids(place=path, videos=[video], size=(h, w), unit=t, are_windows=True, window=t)


def open_folder(folder: Path, config: ImportConfig) -> Ids:
    """Opens a folder with a file for each video, an `.npy` or `.safetensors` [T, h, w]."""
    paths = list(files_below(folder))
    videos, others = [], []
    for path in paths:
        if path.suffix in OPENERS and path.is_file():
            array = OPENERS[path.suffix](path)
            check_ids(array, ("T h w",), config)
            name = printable(path.relative_to(folder).as_posix())
            videos.append(Video(name, array, 0, array.shape[0]))
        else:
            others.append(path.relative_to(folder).as_posix())
    return _of_videos(folder, videos, left_out(others, "files that hold no ids"))


def open_tars(place: Path, tars: Sequence[Path], config: ImportConfig) -> Ids:
    """Opens WebDataset tars in which each key is a video, KEY.npy [T, h, w].

    Labels and captions beside, if asked for, are those of KEY.json, and KEY.cls or KEY.txt.
    """
    videos, others, idless, names = [], [], [], set()
    texts = {text: VideoTexts(text) for text in config.beside}
    read = {kind for text in texts for kind in KINDS[text]}
    for tar in tars:
        within_place = tar.relative_to(place) if tar != place else Path(tar.name)
        keyless: list[Member] = []
        for key, sample in read_samples(tar, PipelineError, keyless=keyless):
            member = _ids_of(sample)
            if member is None:
                idless += [other.name for other in sample.values()]
                continue
            name = printable((within_place.with_suffix("") / key).as_posix())
            if name in names:
                raise PipelineError(f"{member}: its key is there twice.")
            names.add(name)
            array = open_npy(tar, name=str(member), span=(member.offset, member.size))
            check_ids(array, ("T h w",), config)
            videos.append(Video(name, array, 0, array.shape[0]))
            for known in texts.values():
                add_text(known, [name], sample, f"{tar}: {key}")
            unread = [m for kind, m in sample.items() if m is not member and kind not in read]
            others += [other.name for other in unread]
        others += [member.name for member in keyless]
    if not videos:
        raise PipelineError(f"{place} holds no KEY.npy.")
    said = left_out(others, "members beside the ids")
    said += left_out(idless, "members of keys without an .npy")
    return replace(_of_videos(place, videos, said), texts=texts)


def _ids_of(sample: dict[str, Member]) -> Member | None:
    """Returns the one .npy of a sample, if it has any."""
    found = [member for kind, member in sample.items() if f".{kind}".endswith(".npy")]
    if len(found) > 1:
        raise PipelineError(
            f"{found[0]}: its key has {len(found)} .npy, not one, the ids of a video."
        )
    return found[0] if found else None


def _of_videos(place: Path, videos: Sequence[Video], said: tuple[str, ...]) -> Ids:
    size = _size(videos[0].ids)
    for video in videos:
        if _size(video.ids) != size:
            raise PipelineError(
                f"{video.ids} has {_size(video.ids)} ids a latent frame, but {videos[0].ids} has "
                f"{size}: all must be alike, [T, h, w]."
            )
    return Ids(place=place, videos=videos, size=size, said=said)


def _size(array: FileArray) -> tuple[int, int]:
    return array.shape[1], array.shape[2]


def left_out(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Says what is left out, if anything is."""
    return (f"left out {what}: {len(names):,}, first {printable(names[0])}",) if names else ()
