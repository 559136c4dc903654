"""One split of a store in the v1.1 layout of 1X, each window a segment of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.exchange.one_x import ACTIONS, METADATA, SEGMENTS, VIDEO
from pipeline.storage.files import make_folder, replacing, write_json
from pipeline.store.layout import TEXTS
from pipeline.store.reader import TokenStore
from pipeline.store.states import States
from pipeline.store.window import Window


def export_one_x(
    store: TokenStore, split: str, out: Path, *, advance: Callable[[int], None]
) -> list[str]:
    """Writes a split as `metadata.json`, `video.bin`, `segment_ids.bin` and `actions/`.

    `mebt tokens import` makes the same windows of it again. Returns a line for each thing that the
    layout cannot say of them. Raises PipelineError if `out` is there already.
    """
    if out.exists():
        raise PipelineError(f"{out} exists; choose another --out.")
    states, t = States.of(store.info), store.grid[0]
    names = list(states.widths) if states and states.frames == t else []
    with replacing(out) as folder:
        make_folder(folder / ACTIONS if names else folder)
        write_json(folder / METADATA, _metadata(store, split))
        for shard in range(store.num_shards(split)):
            start, stop = store.shard_rows(split, shard)
            numbers = np.arange(start, stop, dtype="<i4").repeat(t)
            _append(folder / VIDEO, store.read_shard(split, shard).astype("<u4").tobytes())
            _append(folder / SEGMENTS, numbers.tobytes())
            table = store.states(split, shard)
            for name in names:
                values = table[name].combine_chunks().flatten().to_numpy() if table else ()
                _append(folder / ACTIONS / f"{name}.bin", np.asarray(values, "<f4").tobytes())
            advance(stop - start)
    return list(_unsaid(store, states))


def _unsaid(store: TokenStore, states: States | None) -> Iterator[str]:
    (t, h, w), rate = store.grid, _rate(store)
    for name in (name for name in TEXTS if name in store.plan().column_names):
        yield f"left out the {name}s: the layout has no place for them"
    if states and states.frames != t:
        yield f"left out the states: they are of {states.frames} frames, not of {t} latent ones"
    if h != w:
        yield f"left out s: latent frames are {h}x{w}, and 1xgpt reads square ones only"
    if rate is None:
        yield "left out hz: how many latent frames a second has is not known; 1xgpt trains with it"


def _metadata(store: TokenStore, split: str) -> dict[str, Any]:
    (t, h, w), rate = store.grid, _rate(store)
    return {
        "token_dtype": "uint32",
        **({"s": h} if h == w else {}),
        **{"h": h, "w": w, "t": t},
        "vocab_size": store.codebook_size,
        "num_images": store.num_windows(split) * t,
        **({"hz": rate} if rate else {}),
    }


def _rate(store: TokenStore) -> float | None:
    """Returns latent frames a second, where all are of as many frames."""
    window = Window.of(store.info)
    each = None if window.causal else window.frames_each(store.grid[0])
    return window.fps / each if window.fps and each else None


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
