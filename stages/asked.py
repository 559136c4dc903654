"""What samples are asked to show: labels and states that are named, or those of real windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mebt import Conditions, MeBTConfig, SampleConfig, StateShape, prepare_states
from mebt.config import LABEL
from pipeline.condition_files import FrameNumbers, file_bytes, read_states
from pipeline.config import suggest
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    PipelineError,
    user_errors,
)
from pipeline.storage.files import sha256_file
from pipeline.storage.places import Place
from pipeline.store.layout import LABEL as LABEL_COLUMN
from pipeline.store.reader import TokenStore
from pipeline.store.window import Window
from stages.conditions import StoreConditions, listed
from stages.given import check_count
from stages.options import choose_split


@dataclass(frozen=True)
class Asked:
    """What a user asks for; sample i has the i-th of the names and videos, in turn."""

    labels: tuple[str, ...] = ()
    states: Path | None = None
    """CSV or Parquet of numbers of frames, of one video or several."""
    like: tuple[TokenStore, str] | None = None
    """Store and split: sample i is asked for what is known of row i."""

    def recorded(self) -> dict[str, Any]:
        """Returns what a store of samples says of it."""
        if self.like:
            store, split = self.like
            return {"conditions": {"tokens": store.fingerprint, "split": split}}
        states = sha256_file(self.states) if self.states else None
        said = {"labels": list(self.labels), "states": states}
        return {"conditions": said}

    def names(self, count: int) -> list[str | None]:
        """Returns the label of each of so many samples; None: none is asked for."""
        if self.like:
            store, split = self.like
            plan = store.plan(split)
            known = plan[LABEL_COLUMN].to_pylist() if store.label_names else []
            return [*known[:count], *[None] * (count - len(known))]
        return [self.labels[i % len(self.labels)] if self.labels else None for i in range(count)]


def open_asked(
    labels: tuple[str, ...], states: Path | None, like: Place | None, split: str | None
) -> Asked | None:
    """Opens what samples are asked for; None if that is nothing."""
    if like is None:
        return Asked(labels, states) if labels or states else None
    store = TokenStore(like)
    return Asked(like=(store, choose_split(split, store.splits, like)))


AT_ONCE = 64
"""Samples whose conditions are looked at together."""


class AskedConditions:
    """Conditions of samples by their numbers, for one model.

    Samples have `latents` latent frames, the first of which begins with frame `first` of a video,
    that has `frames` if this is known: those behind its end are told the states of its last one.
    Raises PipelineError, in one line, for anything that the model does not know, and for too few
    frames.
    """

    def __init__(
        self,
        asked: Asked,
        path: Path,
        model: MeBTConfig,
        window: Window,
        *,
        latents: int,
        first: int = 0,
        frames: int | None = None,
    ) -> None:
        if not model.conditions:
            raise CheckpointError(
                f"{path} knows no conditions, so none can be asked for; train with "
                "model.conditions, such as [label]."
            )
        self.asked, self.model, self.latents = asked, model, latents
        self.like: StoreConditions | None = None
        self.videos: list[dict[str, Tensor]] = []
        """Of each video its numbers by name [F width]."""
        if asked.like:
            self.like = StoreConditions(*asked.like, model)
        for name in asked.labels:
            if name not in model.labels:
                knows = listed(model.labels) if model.labels else "no labels"
                raise CheckpointError(
                    f"{path} does not know the label {name!r}; {suggest(name, model.labels)}it "
                    f"knows {knows}."
                )
        if asked.states:
            self.videos = _videos(
                asked.states, path, model, window, latents=latents, first=first, frames=frames
            )
            self._check_known()

    def _check_known(self) -> None:
        """Raises PipelineError if states do not fit, or if a video says nothing of one of them."""
        states = self.of(range(len(self.videos))).states  # Says at once what does not fit.
        for name, unknown in self._unknown(states).items():
            if name in self.videos[0] and (empty := unknown.all(1).nonzero().flatten().tolist()):
                raise PipelineError(
                    f"{self.asked.states} says nothing of {name} in what is drawn of its video "
                    f"{empty[0]}, counted from 0: a latent frame takes the numbers of all its "
                    "frames."
                )

    def _unknown(self, states: Tensor | None) -> dict[str, Tensor]:
        """Returns of which latent frames a state is not known, by name [B t]; None: of none."""
        if states is None:
            return {}
        parts = torch.split(states, [state.inputs for state in self.model.states], dim=2)
        names = [state.name for state in self.model.states]
        return {name: part.isnan().any(2) for name, part in zip(names, parts, strict=True)}

    def said(self, count: int) -> str:
        """Says what `count` samples are asked for, and what is not known or left open."""
        what = [f"label {listed(self.asked.labels)}"] if self.asked.labels else []
        what += [f"states of {self.asked.states}"] if self.videos else []
        if self.asked.like:
            store, split = self.asked.like
            what = [f"the conditions of {store.root}, split {split}"]
        known = dict.fromkeys(self.model.condition_names, 0)
        for first in range(0, count, AT_ONCE):
            part = self.of(range(first, min(first + AT_ONCE, count)))
            if part.labels is not None and LABEL in known:
                known[LABEL] += int((part.labels >= 0).sum())
            for name, unknown in self._unknown(part.states).items():
                known[name] += int((~unknown).sum())
        gaps, left = [], [name for name, found in known.items() if not found]
        for name, found in known.items():
            total, unit = count, "samples"
            if name != LABEL:
                latents = self.model.grid[0] if self.like else self.latents
                total, unit = count * latents, "latent frames"
            if 0 < found < total:
                gaps.append(f"{name} of {total - found} of {total} {unit}")
        if self.like and self.model.states and self.latents > self.model.grid[0]:
            left.append("states behind their windows")
        said = f"asked for {' and '.join(what)}"
        said += f"; not known: {', '.join(gaps)}" if gaps else ""
        return said + (f"; left open: {', '.join(left)}" if left else "")

    def of(self, numbers: Sequence[int]) -> Conditions:
        """Returns the conditions of these samples."""
        if self.like is not None:
            return self.like.read(numbers)
        labels = states = None
        if names := self.asked.labels:
            places = [self.model.labels.index(names[i % len(names)]) for i in numbers]
            labels = torch.tensor(places)
        if self.videos:
            chosen = [self.videos[i % len(self.videos)] for i in numbers]
            values = {name: torch.stack([video[name] for video in chosen]) for name in chosen[0]}
            with user_errors(self.asked.states):
                states = prepare_states(self.model.states, values, num_frames=self.latents)
        return Conditions(labels, states)


def check_asked(config: SampleConfig, asked: Asked | None) -> None:
    """Raises PipelineError for guidance towards nothing, and for too few windows to be like."""
    if asked and asked.like:
        check_count(*asked.like, config, "is asked for the conditions of")
    if not asked and (config.guidances != (1.0, 1.0) or config.revise_guidance != 1):
        raise ConfigError(
            f"sample.guidance is {config.guidance} and sample.revise_guidance "
            f"{config.revise_guidance}, but nothing is asked for: give --label or "
            "--states."
        )


def _videos(
    file: Path, path: Path, model: MeBTConfig, window: Window, **part: Any
) -> list[dict[str, Tensor]]:
    """Reads the states of `part` of each video of a file, by name [F width]."""
    found = read_states(file, file_bytes(file), nameless=True)
    known = [state.name for state in model.states]
    if foreign := [name for name in found.widths if name not in known]:
        knows = listed(known) if known else "no states"
        raise PipelineError(
            f"{file} has {foreign[0]!r}, which {path} does not know; it knows {knows}."
        )
    shapes = [state for state in model.states if state.name in found.widths]
    return [
        _frames_of(file, video, shapes, window.causal, **part) for video in found.videos.values()
    ]


def _frames_of(
    file: Path,
    video: FrameNumbers,
    shapes: Sequence[StateShape],
    causal: bool,
    *,
    latents: int,
    first: int,
    frames: int | None,
) -> dict[str, Tensor]:
    values = {}
    for shape in shapes:
        count = latents * shape.frames - causal * (shape.frames - 1)
        stop = min(first + count, frames or first + count)
        if (first_of_all := int(video.frames[0])) < 0:
            raise PipelineError(f"{file} has frame {first_of_all}; frames are counted from 0.")
        if (last := int(video.frames[-1])) < stop - 1:
            raise PipelineError(
                f"{file} ends with frame {last}, but frames up to {stop - 1} are drawn, counted "
                "from 0."
            )
        rows, known = video.find(np.arange(first, first + count).clip(max=stop - 1))
        given = np.where(known[:, None], video.values[shape.name][rows], np.float32(np.nan))
        values[shape.name] = torch.from_numpy(given)
    return values
