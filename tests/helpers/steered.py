"""A tiny store of windows with labels and actions, and commands on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from pipeline.store.layout import LABEL, StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.states import States
from pipeline.store.tables import with_texts
from pipeline.store.writer import create_store
from stages.__main__ import cli
from tests.helpers.small import write_params

GRID, FRAMES, CODES = (3, 2, 2), 6, 12
COUNTS = {"train": 24, "test": 6}
LABELS = ("jump", "run", "sit")
STATES = States(FRAMES, {"speed": 2, "key": 1})


def label_of(row: int) -> str | None:
    """Every seventh is not known."""
    return None if row % 7 == 6 else LABELS[row % 3]


def make_store(
    root: Path,
    *,
    labels: Sequence[str] = LABELS,
    keys: int = 4,
    causal: bool = False,
    held_out: bool = False,
) -> TokenStore:
    """Tokens are the label's, plus the key at their latent frame.

    With `held_out` the test split has a label and a kind of its own, and nobody has kind 1.
    """
    states = States(FRAMES - causal, STATES.widths)
    extra = {**states.recorded(), **({"causal": True} if causal else {})}
    info = StoreInfo(
        tokenizer=None,
        codebook_size=CODES,
        grid=GRID,
        source="",
        counts=COUNTS,
        shard_windows=8,
        chunk_windows=4,
        frames=FRAMES - causal,
        extra=extra,
    )
    names = [label_of(row) for count in COUNTS.values() for row in range(count)]
    renamed = dict(zip(LABELS, labels, strict=True))
    plan = numbered_plan(COUNTS, "world", info.shard_windows)
    named = [name and renamed[name] for name in names]
    if held_out:
        named[COUNTS["train"]] = "swim"
    plan = with_texts(plan, LABEL, named)
    writer = create_store(root, info, plan)
    for split, shard in info.shards():
        rows = np.arange(*info.shard_rows(split, shard))
        generator = np.random.default_rng(shard)
        keys_of = generator.integers(keys, size=(len(rows), states.frames, 1))
        keys_of[0, 0], keys_of[0, 1] = 0, keys - 1
        if held_out:
            keys_of[keys_of == 1] = 2
            keys_of[0, 0] = keys if split == "test" else 0
        speed = generator.normal(3.0, 2.0, size=(len(rows), states.frames, 2))
        if split == "train" and shard == 0:
            speed[1, 2] = np.nan
        values = {"speed": speed.astype(np.float32), "key": keys_of.astype(np.float32)}
        tokens = (rows % 3)[:, None, None, None] * 4 + keys_of[:, ::2, 0][:, :, None, None] % 4
        whole = np.broadcast_to(tokens[:, : GRID[0]], (len(rows), *GRID)).copy()
        writer.write_shard(split, shard, whole, states.table(info, split, shard, values))
    return TokenStore(root)


class Steered:
    """A folder with params and such a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_params(root / "params.yaml")
        make_store(root / "tokens")

    def run(self, command: str, *more: str) -> Result:
        words = [command, *more, "--params", str(self.root / "params.yaml")]
        return CliRunner().invoke(cli, words)

    def ok(self, command: str, *more: str) -> str:
        result = self.run(command, *more)
        assert result.exit_code == 0, result.output
        return result.output

    def refused(self, command: str, *more: str) -> str:
        result = self.run(command, *more)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        return line

    def train(self, out: str, *more: str, conditions: str = "[label,speed,key:integers]") -> str:
        known = ("--set", f"model.conditions={conditions}")
        return self.ok("train", *self.train_words(out, *more, *known))

    def train_words(self, out: str, *more: str) -> list[str]:
        return ["--tokens", str(self.root / "tokens"), "--out", str(self.root / out), *more]

    def sample(self, out: str, *more: str, run: str = "run") -> str:
        return self.ok("sample", *self.sample_words(out, *more, run=run))

    def sample_words(self, out: str, *more: str, run: str = "run") -> list[str]:
        few = ("--set", "sample.num_samples=6", "--set", "sample.batch_size=4")
        return ["--run", str(self.root / run), "--out", str(self.root / out), *few, *more]

    def tokens(self, out: str) -> np.ndarray:
        return TokenStore(self.root / out).read("sample")
