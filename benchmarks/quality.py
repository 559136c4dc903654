"""How well models learn worlds of exact rules: `make quality`; or one try, as below.

  python -m benchmarks.quality --world one-square --seeds 1 --set train.max_steps=1000

With --keep FOLDER, tokens, runs, samples and what was found stay there: the same command goes on
after a stop, and tries nothing twice, unless the folder is deleted. With --out FILE, each row goes
there as soon as it is found, in the place of the one of the same world, seed and --set.

Each row is one training and its samples, made by the functions that the commands use, at fixed
data, sizes and steps. A sample is lawful if it obeys the rules of its world to the last token;
its distance is the share of what moves that is wrong. Both are means over the samples. Calls are
passes through the model for each sample; seconds are of drawing and judging all samples, on a
machine that may have had other work.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from benchmarks.pages import replace_between
from benchmarks.worlds import CODES, WORLDS, World, world
from mebt import MeBTShape
from pipeline.config import SECTIONS, build, load_params
from pipeline.params.choose import LATENT_LAYERS
from pipeline.precision import settle
from pipeline.storage.files import remove, write_json, write_text
from pipeline.store.layout import INFO, StoreInfo, numbered_plan
from pipeline.store.reader import TokenStore
from pipeline.store.writer import create_store
from pipeline.training.log import FILE as LOG
from pipeline.tuning import tune_process
from stages.mebt_task import TrainConfig
from stages.sample import SampleStageConfig, sample
from stages.train import train

TRAIN_WINDOWS, TEST_WINDOWS, SAMPLES = 16_384, 256, 256
MODEL_CALLS = 64
HELD_OUT_SEED = 1 << 20
NO_LETTERS = re.compile(r"\W+")
BEGIN, END = "<!-- made by python -m benchmarks.quality -->\n", "<!-- end of quality -->\n"
SHARES = (10, 50, 70, 90)
"""Of tokens masked, in percent, whose losses the page shows."""
UNTOLD = ("precision", "preview_every", "checkpoint_every")
"""Values that make no other model, to rounding: not named on the page."""
KEY = ("world", "seed", "set")
"""What no two rows of a file share."""
Row = dict[str, Any]
Sections = dict[str, dict[str, Any]]

VALUES: Sections = {
    "model": {"layers": LATENT_LAYERS, "width": 128, "num_heads": 4, "num_latents": 32},
    "train": {
        **{"max_steps": 4000, "batch_size": 32, "learning_rate": 1e-3},
        **{"validate_every": 500, "checkpoint_every": 500, "log_every": 50},
        **{"validation_windows": TEST_WINDOWS, "precision": "32-true"},
    },
    "sample": {"num_samples": SAMPLES, "batch_size": 32, "precision": "32-true"},
}
"""Of every world, unless `--set` says otherwise."""
SHORT, STEPS_OF_LONG = 8, 1200
"""Frames of the short worlds; steps of training on longer ones, each of which takes longer."""
PLAIN = {"schedule": "cosine", "temperature": 1.0}
METHODS: Sections = {
    "default: masked anew in 64 steps": {},
    "the same, with frame noise": {"frame_noise": 1.0},
    "random, 64 steps": {"strategy": "random", **PLAIN},
    "confidence, 64 steps": {"strategy": "confidence", **PLAIN},
    "random, 16 steps, revised 12 times": {
        **{"strategy": "random", **PLAIN, "draft_steps": 16, "revise_rounds": 12},
        **{"revise_groups": 4, "revise_temperature": 0.7},
    },
}
"""Ways to sample, each of at most `MODEL_CALLS` passes through the model: a step that would fix no
token is left out."""


def make_tokens(rules: World, out: Path) -> None:
    """Writes a store of a world's videos. Held-out ones are drawn apart from the others."""
    drawn = {
        "train": rules.draw(TRAIN_WINDOWS, seed=0),
        "test": rules.draw(TEST_WINDOWS, seed=HELD_OUT_SEED),
    }
    info = StoreInfo(
        tokenizer=None,
        codebook_size=CODES,
        grid=rules.grid,
        source="world",
        counts={split: len(tokens) for split, tokens in drawn.items()},
        shard_windows=TRAIN_WINDOWS,
    )
    plan = numbered_plan(info.counts, "world", info.shard_windows)
    writer = create_store(out, info, plan)
    for split, shard in info.shards():
        writer.write_shard(split, shard, drawn[split][slice(*info.shard_rows(split, shard))])


def judge(rules: World, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """Returns how many videos are lawful, how far all are from that, and how many are blank."""
    distances = np.array([rules.distance(video) for video in tokens])
    return {
        "lawful": round(float((distances == 0).mean()), 4),
        "distance": round(float(distances.mean()), 4),
        "blank": round(float(np.mean([rules.is_blank(video) for video in tokens])), 4),
    }


def fabric_of(config: TrainConfig | SampleStageConfig) -> Fabric:
    """Starts Fabric in the precision that is asked for."""
    return Fabric(accelerator="cpu", precision=settle(config.precision, None, "cpu")[0])


def log_of(run: Path) -> list[dict[str, Any]]:
    """Reads the log of a run, those steps included that an earlier call did."""
    return [json.loads(line) for line in (run / LOG).read_text("utf-8").splitlines()]


def logged(run: Path, key: str) -> list[float]:
    """Returns a number of every line that holds it."""
    return [line[key] for line in log_of(run) if line.get(key) is not None]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Returns the held-out losses of a run by step, over all masks and for each share masked."""
    found = {}
    for line in log_of(run):
        measured = {k: v for k, v in line.items() if k.startswith("val_loss") and v is not None}
        if measured:
            found[line["step"]] = {key: round(value, 4) for key, value in measured.items()}
    return found


def try_once(
    name: str,
    seed: int,
    sections: Sections,
    methods: Mapping[str, dict[str, Any]],
    keep: Path | None = None,
) -> Row:
    """Trains on one world and samples by each method; every seed has its own model and samples."""
    rules = world(name)
    shape = build(MeBTShape, sections["model"], where="model")
    config = build(TrainConfig, {**sections["train"], "seed": seed}, where="train")
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(keep) as folder:
        run, tokens = Path(folder) / f"run-{seed}", Path(folder) / "tokens"
        if not (tokens / INFO).exists():
            make_tokens(rules, tokens)
        trained = train(tokens, run, shape, config, fabric=fabric_of(config))
        row: Row = {
            "world": name,
            "seed": seed,
            "steps": config.max_steps,
            "parameters": trained.parameters,
            "seconds_per_step": round(median(logged(run, "seconds_per_step")), 4),
            "losses": losses(run),
            "samples": {},
        }
        for method, values in methods.items():
            out = Path(folder) / f"samples-{seed}-{NO_LETTERS.sub('-', method)}"
            settings = build(
                SampleStageConfig, {**sections["sample"], **values, "seed": seed}, where="sample"
            )
            row["samples"][method] = try_method(rules, run, out, settings)
    return row


def try_method(rules: World, run: Path, out: Path, settings: SampleStageConfig) -> dict[str, float]:
    """Samples by one method, and judges that; what was found stays beside the samples.

    Those that a stopped call left are drawn anew, so that calls and seconds are of all.
    """
    beside, fabric = out.with_suffix(".json"), fabric_of(settings)
    if beside.exists():
        sample(run, out, settings, fabric=fabric)  # Raises if they are of other values.
        found: dict[str, float] = json.loads(beside.read_text("utf-8"))
        return found
    remove(out)
    began = time.perf_counter()
    sampled = sample(run, out, settings, fabric=fabric)
    found = {**judge(rules, TokenStore(out).read("sample")), "calls": round(sampled.calls)}
    found["seconds"] = round(time.perf_counter() - began, 1)
    write_json(beside, found)
    return found


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """Returns rows with this one in the place of that of the same world, seed and `--set`.

    Samples by other methods stay in it if they are of the same training, whose losses are the same.
    """
    old = next((each for each in rows if all(each[key] == row[key] for key in KEY)), None)
    if old is None:
        return [*rows, row]
    if list(old["losses"].values()) == list(row["losses"].values()):
        row = {**row, "samples": {**old["samples"], **row["samples"]}}
    return [row if each is old else each for each in rows]


def write_row(out: Path, row: Row, page: Path | None = None) -> None:
    """Puts a row among those of a file, which others may have written to since the row before.

    The page, if there is one, shows them all between its marks.
    """
    rows = merged(json.loads(out.read_text("utf-8")) if out.exists() else [], row)
    write_text(out, json.dumps(rows, indent=1) + "\n")
    print(f"{out}: {len(rows)} rows", file=sys.stderr)
    if page:
        replace_between(page, BEGIN, END, table(rows))


def table(rows: Sequence[Row]) -> str:
    """Says in Markdown what was found: a line for each model, a column for each way to sample."""
    heads = ["world", "other values than the defaults", "seed", "steps"]
    heads += [f"loss at {share}%" for share in SHARES]
    lines = [[*heads, *METHODS], ["---"] * 2 + ["---:"] * (len(heads) - 2 + len(METHODS))]
    for row in sorted(rows, key=lambda row: ([*WORLDS].index(row["world"]), *_told(row))):
        others, seed = _told(row)
        losses = list(row["losses"].values())[-1]
        cells = [f"`{row['world']}`", ", ".join(f"`{value}`" for value in others), str(seed)]
        cells += [f"{row['steps']:,}", *(f"{losses[f'val_loss/mask_{p}']:.4f}" for p in SHARES)]
        lines.append([*cells, *(_cell(row["samples"].get(method)) for method in METHODS)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _told(row: Row) -> tuple[list[str], int]:
    """Returns the values that tell a row from others of its world, and its seed."""
    names = {value: value.partition("=")[0].rpartition(".")[2] for value in row["set"]}
    return [value for value, name in names.items() if name not in UNTOLD], row["seed"]


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    empty = f", {found['blank']:.0%} empty" if found["blank"] else ""
    return f"{found['lawful']:.1%}, {found['distance']:.2f}{empty}"


def show(row: Row) -> None:
    """Prints a row: losses as training went on, then each way to sample."""
    curve = ", ".join(f"{step}: {loss['val_loss']:.3f}" for step, loss in row["losses"].items())
    print(f"{row['world']}, seed {row['seed']}, {row['seconds_per_step']:.3f} s a step; {curve}")
    for method, found in row["samples"].items():
        print(
            f"  {method:36} lawful {found['lawful']:6.1%}  distance {found['distance']:.3f}  "
            f"blank {found['blank']:6.1%}  {found['calls']} calls  {found['seconds']:.0f} s",
            flush=True,
        )


def chosen(name: str, overrides: Sequence[str]) -> Sections:
    """Returns the values of a try on a world, with those of `--set` over them."""
    values = VALUES
    if world(name).grid[0] > SHORT:
        values = {**VALUES, "train": {**VALUES["train"], "max_steps": STEPS_OF_LONG}}
    return chosen_of(values, overrides)


def chosen_of(values: Sections, overrides: Sequence[str]) -> Sections:
    """Returns values, with those of `--set` over them."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as empty:
        given = load_params(Path(empty.name), overrides)
    return {name: {**values[name], **given.get(name, {})} for name in values if name in SECTIONS}


def main() -> None:
    """Tries every world with every seed, and writes each row down once it is found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, help="this one only")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … so many")
    parser.add_argument(
        "--method",
        choices=METHODS,
        action="append",
        metavar="NAME",
        help=f"of {'; '.join(METHODS)}: this one only, and others so given",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="folder for what is made, by world")
    parser.add_argument("--out", type=Path, help="JSON file for rows; those of others stay in it")
    parser.add_argument("--page", type=Path, help="Markdown page that shows the rows of --out")
    options = parser.parse_args()
    if options.page and not options.out:
        parser.error("--page shows the rows of --out: give that, too.")
    methods = {name: METHODS[name] for name in options.method or METHODS}
    for name in [options.world] if options.world else WORLDS:
        for seed in range(options.seeds):
            keep = options.keep and options.keep / name
            row = try_once(name, seed, chosen(name, options.set), methods, keep)
            show(row)
            if options.out:
                write_row(options.out, {"set": options.set, **row}, options.page)


if __name__ == "__main__":
    tune_process()
    main()
