"""From video to video: a model and its tokenizer, with which clips are continued and filled in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mebt import CachedPredictor, Conditions, SampleConfig, weights_identity
from mebt.editing import edit as edit_tokens
from mebt.linear import round_weights
from pipeline.config import Precision
from pipeline.editing.clip import Box, Clip, read_clip
from pipeline.editing.edits import Edit
from pipeline.editing.regions import hide, paste
from pipeline.editing.shape import WindowShape
from pipeline.errors import CheckpointError, ConfigError, user_errors
from pipeline.frames.images import Frame
from pipeline.pixels import to_bytes
from pipeline.precision import HALF, settle
from pipeline.progress import progress
from pipeline.store.same_tokens import TokensOf, check_same_tokens
from pipeline.store.window import Window
from pipeline.windows.encode import encoder_of
from stages.asked import Asked, AskedConditions, check_asked
from stages.run_model import open_model
from tokenizer import Tokenizer, decode_pieces, identity, load_tokenizer, tokens_identity
from tokenizer.pieces import overlap_of

MOST_BYTES = 1 << 32
"""Of all draws of an edit, which are held in memory."""
PIECE_FRAMES = 256
"""Decoded as a whole; longer videos are in pieces."""


@dataclass(frozen=True)
class Editor:
    """A trained model and the tokenizer of its tokens, with which videos are edited."""

    path: Path
    """File of the model."""
    predict: CachedPredictor
    tokenizer: Tokenizer
    shape: WindowShape
    window: Window
    made_from: Mapping[str, str]
    """Identities of both."""
    precision: str
    """In which the model computes; the tokenizer does in float32."""

    @classmethod
    def open(
        cls, run: Path, tokenizer: Path, *, device: str = "cpu", precision: Precision = "32-true"
    ) -> "Editor":
        """Opens both. Raises PipelineError if the run's tokens are not the tokenizer's."""
        path, metadata, model = open_model(run, device)
        with user_errors():
            frozen = load_tokenizer(tokenizer, device)
        codes, grid = model.config.codebook_size, model.config.grid
        theirs = TokensOf(path, metadata.get("tokenizer") or None, codes, grid)
        ours = TokensOf(tokenizer, tokens_identity(frozen), frozen.config.codebook_size, grid)
        check_same_tokens(theirs, ours, "Give the tokenizer that made the model's tokens.")
        fixed, _ = settle(precision, None, torch.device(device).type)
        if fixed == "16-mixed" and torch.device(device).type == "cpu":
            raise ConfigError("sample.precision 16-mixed does not work on a CPU; use bf16-mixed.")
        if fixed in HALF:
            round_weights(model, HALF[fixed])
        config, window = frozen.config, Window.read(path, metadata)
        shape = WindowShape(model.config.grid, config.downsample, bool(config.causal), window.fps)
        made_from = {"model": weights_identity(path), "tokenizer": identity(frozen)}
        return cls(path, CachedPredictor(model), frozen, shape, window, made_from, fixed)

    def read(
        self, path: Path, *, reading: Mapping[str, Any] | None = None, crop: Box | None = None
    ) -> Clip:
        """Reads a video as the model is to see it; see `read_clip`."""
        return read_clip(path, self.shape, reading or {}, crop=crop)

    def check(self, config: SampleConfig, asked: Asked | None = None) -> None:
        """Raises PipelineError if the model cannot sample by these values what is asked for."""
        check_asked(config, asked)
        known = self.predict.model.config.codebook_size
        if config.top_k is not None and config.top_k > known:
            raise ConfigError(f"sample.top_k is {config.top_k}, but there are {known} tokens.")

    def conditions(self, edit: Edit, asked: Asked) -> AskedConditions:
        """Returns what is asked for of the draws of an edit: labels, dealt out in turn, and states
        of the frames of its video. Raises PipelineError for what the model does not know, and for
        too few frames.
        """
        model, each = self.predict.model.config, self.shape.downsample[0]
        for state in model.states if asked.states else ():
            if state.frames != each:
                raise CheckpointError(
                    f"{self.path} knows {state.name} of whole latent frames, but of a video it can "
                    "be told of each frame only; ask for labels alone."
                )
        return AskedConditions(
            *(asked, self.path, model, self.window),
            latents=len(edit.new),
            first=edit.span.start,
            frames=len(edit.frames),
        )

    def edit(
        self,
        edit: Edit,
        config: SampleConfig,
        *,
        count: int = 1,
        conditions: AskedConditions | None = None,
    ) -> list[Frame]:
        """Draws an edit so many times; returns whole videos [T, H, W, 3].

        What is not hidden is as it was, pixel for pixel. Number i depends on the weights, the
        values, the clips, what is asked for, and i. Raises PipelineError if the model cannot sample
        by these values.
        """
        self.check(config, conditions.asked if conditions else None)
        if (size := count * edit.frames.nbytes) > MOST_BYTES:
            raise ConfigError(
                f"{count} videos of {len(edit.frames):,} frames are {size / 1e9:.1f} GB, and all "
                f"are held in memory, {MOST_BYTES / 1e9:.1f} GB at most; ask for fewer or shorter "
                "ones."
            )
        frames, hidden = edit.seen
        tokens, new = torch.from_numpy(self._encode(frames, hidden)), torch.from_numpy(edit.new)
        device = self._device
        made: list[Frame] = []
        with progress("draw", count, "video") as advance:
            for first in range(0, count, config.batch_size):
                numbers = range(first, min(first + config.batch_size, count))
                self.predict.reset()
                with self._autocast():
                    drawn = edit_tokens(
                        self.predict,
                        tokens,
                        new,
                        config,
                        window_frames=self.shape.grid[0],
                        context_frames=edit.context,
                        numbers=numbers,
                        conditions=self._on_device(conditions, numbers),
                        device=device,
                    )
                made += [self._pasted(edit, grid) for grid in drawn.cpu().numpy()]
                advance(len(numbers))
        return made

    @torch.inference_mode()
    def surprise(self, edit: Edit) -> tuple[float, float] | None:
        """Returns how many nats each kept token of a window is off, and what chance would be.

        Half of them, drawn at random, are predicted from the others, as in training: far more than
        the run's validation loss says that its videos looked otherwise. None: fewer than two are
        kept there.
        """
        tokens = torch.from_numpy(self._encode(*edit.seen))[: self.shape.grid[0]].flatten()
        kept = (~torch.from_numpy(edit.new[: self.shape.grid[0]]).flatten()).nonzero()[:, 0]
        if len(kept) < 2:
            return None
        model, half = self.predict.model, len(kept) // 2
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
        device = self._device
        known, asked = kept[order[:half], None].mT, kept[order[half:], None].mT
        with self._autocast():
            logits = model(*(x.to(device) for x in (tokens[known], known, asked)))[0].float()
        loss = functional.cross_entropy(logits.cpu(), tokens[asked][0])
        return float(loss), math.log(model.config.codebook_size)

    @property
    def _device(self) -> torch.device:
        return next(self.predict.model.parameters()).device

    def _on_device(self, asked: AskedConditions | None, numbers: range) -> Conditions | None:
        return asked.of(numbers).changed(lambda x: x.to(self._device)) if asked else None

    def _autocast(self) -> torch.autocast:
        kind = HALF.get(self.precision)
        return torch.autocast(self._device.type, kind or torch.bfloat16, enabled=kind is not None)

    def _encode(self, frames: Frame, hidden: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Returns tokens [t, h, w], window by window, of which none tells of what is hidden."""
        encode, length = encoder_of(self.tokenizer), self.shape.frames(self.shape.grid[0])
        shown = hide(frames, hidden)
        parts = [encode(shown[None, i : i + length])[0] for i in range(0, len(shown), length)]
        return np.concatenate(parts)

    def _pasted(self, edit: Edit, tokens: NDArray[np.int64]) -> Frame:
        part = slice(edit.span.start, min(edit.span.stop, len(edit.frames)))
        overlap = sum(overlap_of(self.tokenizer.config))
        most = max(PIECE_FRAMES // self.shape.downsample[0], overlap + 1)
        pieces = decode_pieces(self.tokenizer, torch.from_numpy(tokens[None]), most=most)
        decoded = np.concatenate([to_bytes(piece)[0] for piece in pieces])
        video = edit.frames.copy()
        shown = part.stop - part.start
        video[part] = paste(decoded[:shown], edit.frames[part], edit.hidden[part])
        return video
