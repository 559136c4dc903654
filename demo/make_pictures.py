"""Makes the README's moving picture after `make demo`: `python demo/make_pictures.py SAMPLES`.

Three blocks side by side: real held-out clips, the same after the tokenizer, and the first of
SAMPLES, a store of what the shipped model draws (`models/README.md`).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.frames.scan import scan_frames
from pipeline.pixels import to_bytes
from pipeline.store.reader import TokenStore, read_rows
from pipeline.video.writer import write_animation
from pipeline.windows.plan import TokenizeConfig, WindowReader
from tokenizer import load_tokenizer

DEMO = Path(__file__).parent
ROWS, COLUMNS, ENLARGE, GAP = 4, 4, 2, 12


def block(videos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lays ROWS x COLUMNS videos [N, T, H, W, 3] out as one, a white line between them."""
    padded = np.pad(videos, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows = [np.concatenate(padded[i : i + COLUMNS], axis=2) for i in range(0, len(videos), COLUMNS)]
    return np.concatenate(rows, axis=1)


def main(drawn_by_model: Path, out: Path) -> None:
    """Writes the picture."""
    count = ROWS * COLUMNS
    tokens, samples = TokenStore(DEMO / "tokens"), TokenStore(drawn_by_model)
    tokenizer = load_tokenizer(DEMO.parent / "models/fish-64.safetensors")
    info, plan = tokens.info, tokens.plan("test")
    assert info.frames and info.stride and info.size
    # One window of each of the last videos of the plan, which is in random order.
    rows = [
        int(np.flatnonzero(np.asarray(plan["video"]) == name)[0])
        for name in list(dict.fromkeys(plan["video"].to_pylist()))[-count:]
    ]
    window = TokenizeConfig(frames=info.frames, stride=info.stride, size=info.size)
    reader = WindowReader(scan_frames(DEMO / "frames").videos, window)
    places = plan.take(rows).to_pylist()
    real = np.stack([reader.pixels("test", p["video"], p["first_frame"]) for p in places])
    with torch.inference_mode():
        decoded, drawn = (
            to_bytes(tokenizer.decode(torch.from_numpy(ids)))
            for ids in (read_rows(tokens, "test", rows), samples.read("sample", 0, count))
        )
    blocks = [
        block(videos).repeat(ENLARGE, 1).repeat(ENLARGE, 2) for videos in (real, decoded, drawn)
    ]
    gap = np.full((*blocks[0].shape[:2], GAP, 3), 255, np.uint8)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_animation(out, np.concatenate([blocks[0], gap, blocks[1], gap, blocks[2]], axis=2), fps=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]), DEMO.parent / "docs/pictures/samples.webp")
