"""What a store of samples is and says: everything that its samples depend on."""

from collections.abc import Mapping
from dataclasses import asdict

from mebt import MeBTConfig, SampleConfig
from pipeline.errors import TokenStoreError
from pipeline.storage.places import Place
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from pipeline.store.window import Window
from stages.asked import Asked
from stages.given import Given

SPLIT = "sample"
SHARD_WINDOWS = 16
"""Samples that are written, and redone after a stop, together."""
SAMPLER = 2
"""Raised when the same values come to draw other samples: a store of samples never mixes two."""
NO_EFFECT = ("num_samples", "batch_size", "compile")
"""Values that no single sample depends on; compiled layers round otherwise, no more."""
LATER = {"guidance": 1, "revise_guidance": 1, "redraw_frames": 0}
"""Values that came later, and what stores that do not say them were drawn with."""


def recorded_precision(out: Place) -> object:
    """Returns the precision that a store of samples goes on in; None if there is none yet."""
    try:
        settings = TokenStore(out, allow_partial=True).info.extra.get("sample")
    except TokenStoreError:  # What is wrong with it is said when it is to be gone on with.
        return None
    return settings.get("precision") if isinstance(settings, dict) else None


def store_info(
    config: SampleConfig,
    model: MeBTConfig,
    metadata: Mapping[str, str],
    window: Window,
    identity: str,
    given: Given | None,
    asked: Asked | None,
) -> StoreInfo:
    """Says what the samples are: everything that they depend on, and the size of their videos."""
    t, h, w = model.grid
    total = config.total_frames or t
    settings = {key: value for key, value in asdict(config).items() if key not in NO_EFFECT}
    for key, before in LATER.items():
        if settings[key] == before:
            del settings[key]
    return StoreInfo(
        tokenizer=metadata.get("tokenizer") or None,
        codebook_size=model.codebook_size,
        grid=(total, h, w),
        source=identity,
        counts={SPLIT: config.num_samples},
        shard_windows=SHARD_WINDOWS,
        chunk_windows=SHARD_WINDOWS,
        extra={
            "sample": settings,
            "sampler": SAMPLER,
            "model": identity,
            "step": metadata.get("step", ""),
            "given": given.recorded() if given else None,
        }
        | ({"causal": True} if window.causal else {})
        | (asked.recorded() if asked else {}),
        frames=window.frames if total == t else window.frames_of(total, t),
        stride=window.stride,
        size=window.size,
        fps=window.fps,
    )
