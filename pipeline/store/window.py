"""What of a video one window of tokens is, as a store and a model's file say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.rates import MAX_FPS
from pipeline.size import Size
from pipeline.store.layout import StoreInfo


@dataclass(frozen=True)
class Window:
    """Frames of a video that a window of tokens is of; None: not known."""

    frames: int | None
    stride: int | None
    size: Size | None
    fps: float | None
    causal: bool
    """Whether the first latent frame is of one frame."""

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last, both included; 1 if not known."""
        return ((self.frames or 1) - 1) * (self.stride or 1) + 1

    @classmethod
    def of(cls, info: StoreInfo) -> "Window":
        """Returns that of a store."""
        return cls(info.frames, info.stride, info.size, info.fps, info.causal)

    def metadata(self) -> dict[str, str]:
        """Returns what a model's file says of it."""
        known = {key: str(getattr(self, key) or "") for key in ("frames", "stride", "fps")}
        size = self.size if isinstance(self.size, int | None) else "x".join(map(str, self.size))
        return {**known, "size": str(size or "")} | ({"causal": "true"} if self.causal else {})

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, str]) -> "Window":
        """Returns what a model's file says. Raises CheckpointError for what is no number."""
        try:
            counts = {key: int(metadata.get(key) or 0) for key in ("frames", "stride")}
            size = tuple(int(side) for side in (metadata.get("size") or "0").split("x", 1))
            fps = float(metadata.get("fps") or 0)
        except ValueError as error:
            raise CheckpointError(f"{path}: of its window it says: {error}.") from None
        if min(*counts.values(), *size) < 0 or not 0 <= fps < MAX_FPS:
            said = {**counts, "size": metadata.get("size"), "fps": fps}
            raise CheckpointError(f"{path}: its window is impossible: {said}.")
        known = {key: count or None for key, count in counts.items()}
        pixels = size if len(size) == 2 else size[0] or None
        return cls(**known, size=pixels, fps=fps or None, causal=bool(metadata.get("causal")))

    def frames_each(self, latent: int) -> int | None:
        """Returns how many frames each of its `latent` frames is, but for a causal first one."""
        rest = latent - self.causal
        if not (self.frames and rest) or (self.frames - self.causal) % rest:
            return None
        return (self.frames - self.causal) // rest

    def frames_of(self, total: int, latent: int) -> int | None:
        """Returns how many frames `total` latent frames are, if `latent` are a window."""
        each = self.frames_each(latent)
        return each and self.causal + (total - self.causal) * each

    def in_latent_frames(self, asked: int, latent: int) -> tuple[int, str]:
        """Returns how many latent frames hold `asked` frames, and what is to be said of it.

        `latent` frames of the model are a window.
        """
        each = self.frames_each(latent)
        if not each:
            return asked, (
                f"sample.total_frames {asked} counts latent frames: how many of the video one is, "
                "the model's tokens did not say"
            )
        total = self.causal + math.ceil((asked - self.causal) / each)
        made = self.frames_of(total, latent)
        which = "each latent frame but the first" if self.causal else "each latent frame"
        said = f"sample.total_frames {asked} makes {made}: {which} is {each} of the video"
        return total, "" if made == asked else said
