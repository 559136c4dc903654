"""Windows of one split as a tokenizer is trained on them: pixels, at random or evenly spread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.pixels import to_model
from pipeline.store.reader import spread_rows
from pipeline.windows.plan import Plan, WindowReader


class WindowSource:
    """Windows of one split, drawn at random or evenly spread."""

    def __init__(self, plan: Plan, split: str, reader: WindowReader) -> None:
        table = plan.table.filter(np.asarray(plan.table["split"]) == split)
        self.split = split
        self.videos = table["video"].combine_chunks().dictionary_encode()
        self.first = table["first_frame"].to_numpy()
        self.reader = reader

    def __len__(self) -> int:
        return len(self.first)

    def read(self, rows: list[int]) -> Tensor:
        """Returns the windows of these rows as float32 [B, 3, T, H, W]."""
        with ThreadPoolExecutor(4) as pool:
            windows = pool.map(
                lambda row: self.reader.pixels(
                    self.split, self.videos[row].as_py(), int(self.first[row])
                ),
                rows,
            )
            return to_model(np.stack(list(windows)))

    def draw(self, count: int, *, generator: torch.Generator) -> list[int]:
        """Draws `count` rows."""
        return torch.randint(len(self), (count,), generator=generator).tolist()

    def names(self, rows: list[int]) -> list[str]:
        """Returns what these rows are called: video and first frame."""
        return [f"{self.videos[row].as_py()} from frame {self.first[row]}" for row in rows]

    def spread(self, count: int) -> list[int]:
        """Picks up to `count` rows, evenly spread."""
        return spread_rows(len(self), count)
