"""How well samples do what they are asked: `python -m benchmarks.steering`.

  python -m benchmarks.steering --world labels --set train.max_steps=200 --set sample.num_samples=32

Trains a model on each world of `benchmarks/steered_worlds.py`, samples at several strengths of
guidance, and writes the table into docs/steering.md and the rows into steering.json, unless --world
or --set make it another try. With --keep FOLDER, what is made stays, and the same command goes on
after a stop. Each sample is asked for what a held-out video was drawn by.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import replace_between
from benchmarks.quality import Sections, chosen_of, fabric_of, logged
from benchmarks.steered_worlds import (
    CODES,
    FRAMES,
    SIZE,
    STEERED_WORLDS,
    Drawn,
    SteeredWorld,
    Tokens,
)
from mebt import MeBTShape
from pipeline.config import build
from pipeline.params.choose import LATENT_LAYERS
from pipeline.store.layout import INFO, LABEL, StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.tables import with_texts
from pipeline.store.writer import create_store
from pipeline.tuning import tune_process
from stages.asked import Asked
from stages.mebt_task import TrainConfig
from stages.sample import SampleStageConfig, sample
from stages.train import train

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "steering.json"
PAGE = ROOT / "docs" / "steering.md"
BEGIN, END = "<!-- made by python -m benchmarks.steering -->\n", "<!-- end of steering -->\n"
SEEDS = {"train": 0, "test": 1 << 20}
COUNTS = {"train": 16_384, "test": 256}
Row = dict[str, Any]

VALUES: Sections = {
    "model": {"layers": LATENT_LAYERS, "width": 96, "num_heads": 3, "num_latents": 24},
    "train": {
        **{"max_steps": 1500, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 50},
        **{"validate_every": 500, "checkpoint_every": 500, "log_every": 50, "preview_every": 0},
        **{"validation_windows": COUNTS["test"], "precision": "auto", "schedule": "linear"},
        "stable_share": 0.0,
    },
    "sample": {
        **{"num_samples": 128, "batch_size": 64, "draft_steps": 32},
        "precision": "auto",
    },
}
"""Of both worlds, unless `--set` says otherwise."""
STRENGTHS: Mapping[str, dict[str, Any]] = {
    "1": {},
    "1.5": {"guidance": 1.5},
    "2": {"guidance": 2.0},
    "3": {"guidance": 3.0},
    "5": {"guidance": 5.0},
    "4 → 1": {"guidance": (4.0, 1.0)},
    "1, revised once in 8 groups at 2": {
        **{"revise_rounds": 1, "revise_groups": 8, "revise_guidance": 2.0}
    },
    "1, revised once in 8 groups at 1": {"revise_rounds": 1, "revise_groups": 8},
    "1, revised 4 times in 8 groups at 2": {
        **{"revise_rounds": 4, "revise_groups": 8, "revise_guidance": 2.0}
    },
}
FREE = "asked for nothing"


def make_tokens(world: SteeredWorld, out: Path) -> dict[str, Drawn]:
    """Writes a store of a world's videos, if there is none yet; returns what each split holds."""
    drawn = {split: world.draw(count, SEEDS[split]) for split, count in COUNTS.items()}
    if (out / INFO).exists():
        return drawn
    info = StoreInfo(
        tokenizer=None,
        codebook_size=CODES,
        grid=(FRAMES, SIZE, SIZE),
        source="world",
        counts=COUNTS,
        shard_windows=COUNTS["train"],
        extra=world.states.recorded() if world.states else {},
    )
    plan = numbered_plan(info.counts, "world", info.shard_windows)
    plan = with_texts(plan, LABEL, [label for split in drawn.values() for label in split.labels])
    writer = create_store(out, info, plan)
    for split, shard in info.shards():
        table, mine = None, drawn[split]
        if world.states is not None and mine.actions is not None:
            (name,) = world.states.widths
            table = world.states.table(info, split, shard, {name: mine.actions})
        writer.write_shard(split, shard, mine.tokens, table)
    return drawn


def judge(world: SteeredWorld, tokens: Tokens, drawn: Drawn) -> dict[str, float]:
    """Returns which shares of videos are lawful, and do what the drawn ones were drawn by."""
    lawful = [world.lawful(video) for video in tokens]
    obeys = [world.obeys(video, drawn, row) for row, video in enumerate(tokens)]
    return {"lawful": sum(lawful) / len(tokens), "obeys": sum(obeys) / len(tokens)}


def try_world(name: str, sections: Sections, keep: Path | None = None) -> Row:
    """Trains on one world, and samples from it freely and at each strength."""
    world = STEERED_WORLDS[name]
    model = {**sections["model"], "conditions": [world.condition]}
    shape = build(MeBTShape, model, where="model")
    config = build(TrainConfig, sections["train"], where="train")
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(keep / name) as folder:
        run, store = Path(folder) / "run", Path(folder) / "tokens"
        drawn = make_tokens(world, store)["test"]
        trained = train(store, run, shape, config, fabric=fabric_of(config))
        row: Row = {
            "world": name,
            "steps": config.max_steps,
            "parameters": trained.parameters,
            "seconds_per_step": round(median(logged(run, "seconds_per_step")), 4),
            "val_loss": round(logged(run, "val_loss")[-1], 4),
            "num_samples": sections["sample"]["num_samples"],
            "samples": {},
        }
        like = Asked(like=(TokenStore(store), "test"))
        asked = {FREE: (None, {}), **{key: (like, how) for key, how in STRENGTHS.items()}}
        for number, (key, (wanted, how)) in enumerate(asked.items()):
            out = Path(folder) / f"samples-{number}"
            values = build(SampleStageConfig, {**sections["sample"], **how}, where="sample")
            began = time.perf_counter()
            sample(run, out, values, fabric=fabric_of(values), asked=wanted)
            row["samples"][key] = {
                **judge(world, TokenStore(out).read("sample"), drawn),
                "seconds": round(time.perf_counter() - began, 1),
            }
            print(f"{name}, {key}: {row['samples'][key]}", file=sys.stderr, flush=True)
    return row


def tables(rows: Sequence[Row]) -> str:
    """Returns the table of docs/steering.md."""
    names = [row["world"] for row in rows]
    head = ["guidance", *(f"{name}: {what}" for name in names for what in ("lawful", "obeys"))]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for key in rows[0]["samples"]:
        shares = []
        for found in (row["samples"][key] for row in rows):
            shares += [f"{found['lawful']:.1%}", f"{found['obeys']:.1%}"]
        lines.append("| " + " | ".join([key, *shares]) + " |")
    trained = [
        f"{row['world']} {row['parameters']:,} parameters, {row['steps']:,} steps of "
        f"{row['seconds_per_step']:.2f} s"
        for row in rows
    ]
    counted = f"Of {rows[0]['num_samples']} samples each; {'; '.join(trained)}."
    return "\n".join([*lines, "", counted, ""])


def write_page(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Puts the table between its marks."""
    replace_between(page, BEGIN, END, f"\n{tables(rows)}\n")


def main() -> None:
    """Tries both worlds, and writes down what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=STEERED_WORLDS, help="this one only")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="folder for what is made, by world")
    options = parser.parse_args()
    sections = chosen_of(VALUES, options.set)
    names = [options.world] if options.world else list(STEERED_WORLDS)
    rows = [try_world(name, sections, options.keep) for name in names]
    print(tables(rows))
    if not options.world and not options.set:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_page(rows)


if __name__ == "__main__":
    tune_process()
    main()
