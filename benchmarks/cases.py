"""The rows of the table, with their targets."""

from functools import partial

from benchmarks.models import (
    adamw,
    bootstrapping,
    decoding,
    drafting,
    encoding,
    forward,
    products,
    revising,
    training,
)
from benchmarks.pipelines import (
    cached_step,
    dealing,
    making_videos,
    step_on_the_fly,
    tokenizing,
    waiting,
    waiting_on_the_fly,
)
from benchmarks.work import Case

CASES = (
    Case(name="matrix products alone, 24", prepare=products),
    Case(
        name="train forward + backward, 16 frames, batch 2",
        prepare=partial(training, frames=16, batch=2),
        target=1.15,
    ),
    Case(
        name="train forward + backward, 128 frames",
        prepare=partial(training, frames=128, batch=1),
        target=1.15,
        extra_gb_target=2.0,
    ),
    Case(
        name="the same, activation checkpointing",
        prepare=partial(training, frames=128, batch=1, activation_checkpointing=True),
        extra_gb_target=0.8,
    ),
    Case(name="AdamW step, 337M parameters", prepare=adamw, target=0.25, in_seconds=True),
    Case(
        name="draft, 16 frames, 8 steps",
        prepare=partial(drafting, frames=16, steps=8),
        target=1.1,
    ),
    Case(
        name="the same, first of a run",
        prepare=partial(drafting, frames=16, steps=8, first=True),
    ),
    Case(
        name="revise, 16 frames, 2 groups",
        prepare=partial(revising, frames=16, groups=2),
        target=1.1,
    ),
    Case(
        name="revise, 128 frames, 8 groups",
        prepare=partial(revising, frames=128, groups=8),
        target=1.1,
        extra_gb_target=0.8,
    ),
    Case(
        name="forward, 128 frames, half masked",
        prepare=partial(forward, frames=128),
        target=1.15,
    ),
    Case(
        name="bootstrap, 128 frames, 2 steps",
        prepare=partial(bootstrapping, frames=128, steps=2),
        target=0.9,
        extra_gb_target=0.8,
    ),
    Case(
        name="draft top-k 32, 128 frames, 4 steps",
        prepare=partial(drafting, frames=128, steps=4, top_k=32),
        target=1.1,
        extra_gb_target=0.8,
    ),
    Case(name="VQGAN encode, 16 frames", prepare=encoding, target=1.5),
    Case(name="VQGAN decode, 16 frames", prepare=decoding, target=1.2),
    Case(name="whole step, cached tokens, 16 frames, batch 2", prepare=cached_step),
    Case(name="whole step, frames read and encoded in it", prepare=step_on_the_fly),
    Case(name="waiting for cached tokens / whole step", prepare=waiting, target=0.01),
    Case(name="waiting for frames and encoding / whole step", prepare=waiting_on_the_fly),
    Case(name="dealing out an epoch of cached tokens", prepare=dealing),
    Case(name="tokenize from frames / model alone", prepare=tokenizing, target=1.1),
    Case(name="decode to videos / model alone", prepare=making_videos, target=1.1),
)

GROWTH_FRAMES, GROWTH_WIDTH = (16, 32, 64, 128, 256), 256
GROWTH = {
    kind: [
        Case(
            name=f"{kind}, {frames} frames, width {GROWTH_WIDTH}",
            prepare=partial(prepare, frames=frames, width=GROWTH_WIDTH),
        )
        for frames in GROWTH_FRAMES
    ]
    for kind, prepare in (
        ("training", partial(training, batch=1)),
        ("sampling", partial(drafting, steps=4)),
    )
}
"""One window of each length: the published layers at a quarter of their width."""
