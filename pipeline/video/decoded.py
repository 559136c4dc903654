"""The folder of decoded videos: an mp4 of each, one sheet of all, exact frames on request."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.config import TokenizerPrecision, as_dict
from pipeline.errors import ConfigError
from pipeline.rates import check_rate
from pipeline.storage.outputs import prepare_folder
from pipeline.video.writer import mp4_writer, shown_every, write_sheet

RECORD = "decode.json"
EXACT = "frames.zarr"
MAX_ON_SHEET = 4096
MAX_SHEET = {"webp": 16383, "gif": 65535}
"""Longest side in pixels that the format can hold."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How tokens become videos."""

    fps: float | None = None
    """Frames per second of the videos and the sheet, 0.1 … 1000; null: as the frames that the
    tokens, or the samples' model, were made of; 8 if that is not known."""
    batch_size: int = 4
    """Windows decoded at once; changes speed and memory, pictures by rounding only."""
    sheet: Literal["webp", "gif"] = "webp"
    """Kind of the contact sheet: webp is smaller and has all colours."""
    sheet_videos: int = 64
    """Most videos on the contact sheet, up to 4096; they are held in memory together."""
    columns: int | None = None
    """Videos side by side on the sheet; null: about as many as there are rows."""
    piece_frames: int = 256
    """Frames that are decoded at once, as many as memory is for. Longer windows are decoded in
    pieces that overlap, and the sheet shows so many of their frames."""
    precision: TokenizerPrecision = "32-true"
    """Of the tokenizer's convolutions. bf16-mixed is faster where the device multiplies in it;
    pixels differ by one or two of 255."""

    def __post_init__(self) -> None:
        check_rate(self.fps)
        for name in ("batch_size", "sheet_videos", "columns", "piece_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.sheet_videos > MAX_ON_SHEET:
            raise ValueError(
                f"sheet_videos must be at most {MAX_ON_SHEET}, got {self.sheet_videos}."
            )
        if self.columns is not None and self.columns > self.sheet_videos:
            raise ValueError(
                f"columns must be at most sheet_videos, got {self.columns} and {self.sheet_videos}."
            )

    def recorded(self, fps: float, *, in_pieces: bool) -> dict[str, Any]:
        """Returns what a folder of videos, which play at `fps`, says of these values."""
        values = {**as_dict(self), "fps": fps}
        if not in_pieces:  # Then it changes nothing.
            del values["piece_frames"]
        # A precision as it always was is left out: folders of earlier versions go on.
        return {key: value for key, value in values.items() if value != "32-true"}


class Outputs:
    """The files of one decoded split, and which of them are there."""

    def __init__(
        self, out: Path, split: str, count: int, num_frames: int, config: DecodeConfig
    ) -> None:
        self.out, self.split, self.count, self.num_frames = out, split, count, num_frames
        self.at_once = min(config.piece_frames, num_frames)
        """Frames of each video that are on the sheet, and in one chunk of exact ones."""
        self.sheet = out / f"sheet.{config.sheet}"
        self.on_sheet = min(config.sheet_videos, count)
        self.columns = min(config.columns or math.ceil(math.sqrt(self.on_sheet)), self.on_sheet)

    def frames_skipped(self, fps: float) -> str:
        """Says which frames the sheet shows, if its format plays fewer a second."""
        step, kind = shown_every(self.sheet.suffix, fps), self.sheet.suffix[1:]
        said = f"{self.sheet}: one frame of {step}, as {kind} plays no {fps:g} a second"
        return said if step > 1 else ""

    def frames_not_shown(self) -> str:
        """Says how much of long videos the sheet shows."""
        said = f"{self.sheet} shows the first {self.at_once} of {self.num_frames} frames"
        return said if self.at_once < self.num_frames else ""

    def check_sheet(self, height: int, width: int) -> None:
        """Raises ConfigError if the sheet's format cannot hold so many videos of this size."""
        rows = math.ceil(self.on_sheet / self.columns)
        longest = max(self.columns * (width + 2), rows * (height + 2))  # With a frame around each.
        kind = self.sheet.suffix[1:]
        if longest > MAX_SHEET[kind]:
            raise ConfigError(
                f"{rows} rows of {self.columns} videos make a sheet of {longest} pixels, but "
                f"{kind} holds {MAX_SHEET[kind]}; lower decode.sheet_videos, or set "
                "decode.columns."
            )

    def prepare(self, made_from: dict[str, Any], *, overwrite: bool) -> None:
        """Makes the folder, or checks that the one there is of the same videos."""
        what = "folder of decoded videos"
        prepare_folder(self.out, RECORD, made_from, what=what, overwrite=overwrite)

    def video(self, row: int) -> Path:
        """Returns where the video of a row goes."""
        return self.out / f"{self.split}-{row:05d}.mp4"

    def exact(self, row: int) -> list[Path]:
        """Returns where the exact frames of a row lie inside their array, chunk by chunk."""
        chunks = range(-(-self.num_frames // self.at_once))
        return [self.out / EXACT / "c" / str(row) / str(n) / "0" / "0" / "0" for n in chunks]

    def needed(self, row: int, *, exact: bool) -> bool:
        """Says whether something of this row is still to be made, if only its place on a sheet."""
        on_missing_sheet = row < self.on_sheet and not self.sheet.exists()
        return on_missing_sheet or self.missing(row, exact=exact)

    def missing(self, row: int, *, exact: bool) -> bool:
        """Says whether a file of this row is still to be made."""
        files = [self.video(row), *(self.exact(row) if exact else [])]
        return not all(file.exists() for file in files)

    @contextmanager
    def writer(self, fps: float, *, exact: bool) -> Iterator[Callable[..., None]]:
        """Yields what writes whatever is still to be made of a row, from its frames.

        It is to be called with every row that is needed, in order, or with parts of some rows in
        turn: then with `is_last` for each one's last part. No file of a row is there before that.
        """
        begun: dict[int, _Row] = {}
        sheet: list[NDArray[np.uint8]] = []
        array: zarr.Array[Any] | None = None

        def write(row: int, frames: NDArray[np.uint8], *, is_last: bool = True) -> None:
            nonlocal array
            if exact and array is None:
                array = self._open_exact(frames.shape[1:])
            if row not in begun:
                begun[row] = _Row(self, row, fps, array)
                files.enter_context(begun[row].files)
            begun[row].add(frames)
            if not is_last:
                return
            begun[row].files.close()
            shown = begun.pop(row).shown
            if row < self.on_sheet and not self.sheet.exists():
                sheet.append(np.concatenate(shown))
                if len(sheet) == self.on_sheet:
                    write_sheet(self.sheet, sheet, columns=self.columns, fps=fps)
                    sheet.clear()

        with ExitStack() as files:  # Those of unfinished rows are dropped if an error comes.
            yield write

    def _open_exact(self, sides: tuple[int, ...]) -> "zarr.Array[Any]":
        """Opens, or makes, the array [N, T, H, W, 3] of exact frames: one chunk a short video."""
        if (self.out / EXACT / "zarr.json").exists():
            found = zarr.open_array(self.out / EXACT, mode="r+", zarr_format=3)
            return found.with_config({"write_empty_chunks": True})  # Opening forgets it.
        return create_exact(self.out / EXACT, (self.count, self.num_frames, *sides), self.at_once)


def create_exact(path: Path, shape: tuple[int, ...], frames_at_once: int) -> "zarr.Array[Any]":
    """Makes an array of exact frames, of this shape (N, T, H, W, 3)."""
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(1, frames_at_once, *shape[2:]),
        dtype=np.uint8,
        compressors=[ZstdCodec(level=1, checksum=True)],
        config={"write_empty_chunks": True},  # A black video is a video, not a missing one.
    )


class _Row:
    """What is being written of one video."""

    def __init__(
        self, outputs: Outputs, row: int, fps: float, array: "zarr.Array[Any] | None"
    ) -> None:
        self.row, self.array, self.done, self.at_once = row, array, 0, outputs.at_once
        self.num_frames = outputs.num_frames
        self.waiting = np.empty(0, np.uint8)
        """Exact frames that do not make a chunk yet; only whole ones are written, once."""
        self.shown: list[NDArray[np.uint8]] = []
        self.on_sheet = row < outputs.on_sheet and not outputs.sheet.exists()
        self.files = ExitStack()
        self.add_to_video: Callable[[NDArray[np.uint8]], None] | None = None
        if not outputs.video(row).exists():
            self.add_to_video = self.files.enter_context(mp4_writer(outputs.video(row), fps=fps))

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Takes in the next frames [T, H, W, 3]."""
        if self.on_sheet and self.done < self.at_once:
            self.shown.append(frames[: self.at_once - self.done])
        self.done += len(frames)
        if self.array is not None:
            self.waiting = np.concatenate([self.waiting, frames]) if len(self.waiting) else frames
            is_last = self.done == self.num_frames
            while len(self.waiting) >= self.at_once or (is_last and len(self.waiting)):
                part = self.waiting[: self.at_once]
                begin = self.done - len(self.waiting)
                self.array[self.row, begin : begin + len(part)] = part
                self.waiting = self.waiting[len(part) :]
        if self.add_to_video is not None:
            self.add_to_video(frames)
