"""What a model in training draws of the same few seeds, and what that looks like."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from mebt import (
    CachedPredictor,
    Conditions,
    MeBTConfig,
    SampleConfig,
    assemble,
    sample_frames,
)
from mebt.linear import round_weights
from pipeline.errors import user_errors
from pipeline.pixels import decode_tokens
from pipeline.precision import HALF, precision_of
from pipeline.rates import playing_rate
from pipeline.store.reader import TokenStore
from pipeline.store.same_tokens import check_tokenizer
from pipeline.training.previews import Tokens
from pipeline.video.writer import write_sheet
from tokenizer import load_tokenizer, tokens_identity

SAMPLES = SampleConfig(
    num_samples=4, draft_steps=16, strategy="random", schedule="cosine", temperature=1.0
)
"""Of a preview: as few as show something. In so few steps the most certain tokens first would leave
little but background; at random places, tokens are as frequent as in real videos."""
PREVIEW_PASSES = SAMPLES.num_samples * SAMPLES.draft_steps
"""Windows that go through the model for a preview."""


def draw(config: MeBTConfig, fabric: Fabric, weights: Mapping[str, Tensor]) -> Tokens:
    """Draws what `mebt sample` would of a model of these weights by the values `SAMPLES`.

    Of a model that knows labels, these in turn, evenly spread over all of them.
    Takes nothing from the random numbers of training, and leaves the weights as they are.
    """
    model = assemble(config, weights).eval().to(fabric.device)
    precision = precision_of(fabric)
    if precision in HALF:
        round_weights(model, HALF[precision])
    numbers = range(SAMPLES.num_samples)
    conditions = None
    if config.labels:
        spread = torch.linspace(0, len(config.labels) - 1, len(numbers)).round().long()
        conditions = Conditions(spread.to(fabric.device))
    with fabric.autocast():
        drawn = sample_frames(
            *(CachedPredictor(model), config.grid, SAMPLES),
            numbers=numbers,
            conditions=conditions,
            device=fabric.device,
        )
    return drawn.cpu().numpy()


def decoder(path: Path, store: TokenStore, device: torch.device) -> Callable[[Path, Tokens], None]:
    """Returns what writes previews side by side, as one moving picture.

    Decodes one at a time: that takes less memory than a step. Raises PipelineError if the tokenizer
    at `path` did not make the tokens of the store.
    """
    with user_errors():
        tokenizer = load_tokenizer(path)
    check_tokenizer(store, path, tokens_identity(tokenizer))
    fps, _ = playing_rate(None, store.info.fps)

    def show(picture: Path, tokens: Tokens) -> None:
        tokenizer.to(device)
        videos = [decode_tokens(tokenizer, grid[None])[0] for grid in tokens]
        write_sheet(picture, videos, columns=len(videos), fps=fps)

    return show
