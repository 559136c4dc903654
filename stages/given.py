"""Windows that samples begin from, and whether they, the values and the model go together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mebt import MeBTConfig, SampleConfig
from pipeline.errors import CheckpointError, ConfigError, TokenStoreError
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import TokensOf, check_same_tokens
from pipeline.store.window import Window
from stages.options import choose_split


@dataclass(frozen=True)
class Given:
    """Windows that samples begin from: sample i from row i of a split."""

    store: TokenStore
    split: str
    is_draft: bool
    """The windows are a draft to revise; otherwise only their kept frames are read."""

    def recorded(self) -> dict[str, Any]:
        """Returns what a store of samples says of them."""
        tokens, split = self.store.fingerprint, self.split
        return {"tokens": tokens, "split": split, "drafted": self.is_draft}

    def windows(self, numbers: range) -> Int[Tensor, "B t h w"]:
        """Returns the windows of these samples."""
        return torch.from_numpy(self.store.read(self.split, numbers.start, numbers.stop))


def open_given(tokens: Place, split: str | None, config: SampleConfig, *, is_draft: bool) -> Given:
    """Opens the store that samples begin from. Raises TokenStoreError if it is too small."""
    store = TokenStore(tokens)
    split = choose_split(split, store.splits, tokens)
    check_count(store, split, config, "begins from")
    return Given(store, split, is_draft)


def check_count(store: TokenStore, split: str, config: SampleConfig, use: str) -> None:
    """Raises TokenStoreError unless there is a window for each sample; `use` says what for."""
    if (count := store.num_windows(split)) < config.num_samples:
        raise TokenStoreError(
            f"{store.root} has {count} windows of {split}, but sample.num_samples is "
            f"{config.num_samples}; each sample {use} a window of its own."
        )


def check_values(config: SampleConfig, path: Path, model: MeBTConfig, window: Window) -> None:
    """Raises PipelineError if the model at `path` cannot sample by these values."""
    t, _, _ = model.grid
    if config.top_k is not None and config.top_k > model.codebook_size:
        raise CheckpointError(
            f"sample.top_k is {config.top_k}, but {path} knows {model.codebook_size} tokens."
        )
    if (config.total_frames or t) <= t:
        return
    if (overlap := config.context_frames + config.redraw_frames) >= t:
        again = f" and sample.redraw_frames {config.redraw_frames}" if config.redraw_frames else ""
        raise ConfigError(
            f"sample.context_frames is {config.context_frames}{again}, but a window of {path} has "
            f"{t} latent frames: no room for a new one beside {overlap}."
        )
    if window.causal:
        raise ConfigError(
            f"sample.total_frames is beyond the {window.frames} frames of the window of {path}: a "
            "window that slides would begin with a latent frame of several frames, but that of a "
            "causal tokenizer begins with a single one. Train on longer windows (tokenize.frames)."
        )


def check_given(
    given: Given | None,
    config: SampleConfig,
    path: Path,
    model: MeBTConfig,
    tokenizer: str | None,
) -> None:
    """Raises PipelineError if what is given does not go with the values, or with the model."""
    t, _, _ = model.grid
    if given is None:
        if config.keep:
            raise ConfigError("sample.keep needs windows to keep frames of: give --given.")
        return
    if max(config.keep, default=0) >= t:
        raise ConfigError(
            f"sample.keep names frame {max(config.keep)}, but there are {t} latent ones, from 0 on."
        )
    if given.is_draft and config.total_frames not in (None, t):
        raise ConfigError(
            f"sample.total_frames must be null to revise a draft of {t} latent frames."
        )
    if given.is_draft and not config.revise_rounds:
        raise ConfigError(
            "sample.revise_rounds is 0, so --draft would be left as it is; set it to 1 or more."
        )
    if not given.is_draft and not config.keep:
        raise ConfigError("--given has no effect if sample.keep names no latent frame of it.")
    ours = TokensOf(path, tokenizer, model.codebook_size, model.grid)
    advice = "Give tokens of what the model was trained on."
    check_same_tokens(TokensOf.store(given.store), ours, advice)
