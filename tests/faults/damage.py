"""Files that changed on the disk: refused by name, or what is read is what was written."""

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kills import must_be_undisturbed
from tests.faults.trial import DataLostError, Trial, WrongDataError, kind
from tests.faults.world import LONGER, OUT, result
from tests.helpers.small import content


@dataclass(frozen=True)
class Target:
    """A kind of file: where it lies, and a command that reads it."""

    artefact: str
    pattern: str
    """Of files below the artefact; empty: it is a file itself."""
    read: Callable[[Trial, Path, Path], None]
    """(trial, copy of the artefact, damaged file in it)."""
    other: str | None = None
    """A file of the same kind that is of something else; None: the artefact has several."""


def flip(draw: random.Random, file: Path) -> bytes:
    """Returns a file's bytes with one bit flipped."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def truncate(draw: random.Random, file: Path) -> bytes:
    """Returns a file's bytes without some at its end."""
    data = file.read_bytes()
    return data[: draw.randrange(len(data))]


def same(found: object, wanted: object, file: Path) -> None:
    """Raises WrongDataError if a damaged file was read, and made a difference."""
    if found != wanted:
        raise WrongDataError(f"{file} was read as if it were whole")


def by_export(trial: Trial, store: Path, file: Path) -> None:
    """Takes all tokens out of a store, then has what is broken made again."""
    tars = trial.folder / "tars"
    words = ("tokens", "export", store, "--format", "webdataset", "--out", tars)
    if not trial.refusal(trial.run(*words), file, store):
        same(content(tars), trial.world.contents[f"{store.name}-tars"], file)
    stage = {out: stage for stage, out in OUT.items()}[store.name]
    again = trial.world.words(stage, out=store)
    if trial.refusal(trial.run(*again), file, store):
        trial.run(*again, "--overwrite").must_succeed()
    must_be_undisturbed(trial, stage, store)


def by_import(trial: Trial, tars: Path, file: Path) -> None:
    """Makes a store of exported tars."""
    store = trial.folder / "imported"
    if not trial.refusal(trial.run("tokens", "import", tars, "--out", store), file, tars):
        same(content(store), trial.world.results["tokenize"], file)


def by_sampling(trial: Trial, run: Path, file: Path) -> None:
    """Samples the model of a run, into samples of the undamaged one if there is a choice."""
    samples = trial.folder / "samples"
    if trial.swapped:
        samples = trial.copy("samples")
    words = trial.with_input("sample", "--run", run, out=samples)
    if not trial.refusal(trial.run(*words), file, samples):
        same(result("sample", samples), trial.world.results["sample"], file)


def by_going_on(trial: Trial, run: Path, file: Path) -> None:
    """Goes on with a run, for more steps."""
    stage = {out: stage for stage, out in OUT.items()}[run.name]
    ended = trial.run(*trial.world.words(stage, *LONGER[stage], out=run))
    if not trial.refusal(ended, file, run):
        found, wanted = result(stage, run), trial.world.longer[stage]
        if f"{file} is missing: a new log begins at step" in ended.said:
            wanted = wanted | {"log": found["log"]}
        same(found, wanted, file)
        if int(re.findall(r": (\d+) steps", ended.said)[0]) > MAX_REDONE:
            raise DataLostError(f"{file} was damaged, and steps that were done are done again")


def by_report(trial: Trial, run: Path, file: Path) -> None:
    """Shows curves and previews of a run."""
    page = trial.folder / "report.html"
    ended = trial.run(*trial.world.report(run, page))
    if not trial.refusal(ended, file, run):
        left_out = f"{file} is missing: its curves are left out" in ended.said
        if not left_out and b"<dt>previews</dt><dd>none kept</dd>" not in page.read_bytes():
            same(page.read_bytes(), trial.world.contents["report.html"], file)


def by_decoding(trial: Trial, tokenizer: Path, file: Path) -> None:
    """Decodes tokens with a tokenizer."""
    videos = trial.folder / "videos"
    words = trial.with_input("decode", "--tokenizer", file, out=videos)
    if not trial.refusal(trial.run(*words), file):
        same(result("decode", videos), trial.world.results["decode"], file)


def by_encoding(trial: Trial, artefact: Path, file: Path) -> None:
    """Encodes frames with a tokenizer, one of the two damaged."""
    if trial.swapped:  # Two whole pictures in each other's place: only a store can tell.
        return by_encoding_again(trial, artefact, file)
    tokens = trial.folder / "tokens"
    flag = "--frames" if artefact.is_dir() else "--tokenizer"
    words = trial.with_input("tokenize", flag, artefact, out=tokens)
    if not trial.refusal(trial.run(*words), file):
        same(result("tokenize", tokens), trial.world.results["tokenize"], file)


def by_encoding_again(trial: Trial, frames: Path, file: Path) -> None:
    """Encodes frames into the store that there is: lists may be edited, but not behind its back."""
    tokens = trial.copy("tokens")
    words = trial.with_input("tokenize", "--frames", frames, out=tokens)
    if not trial.refusal(trial.run(*words), file, frames, tokens):
        same(result("tokenize", tokens), trial.world.results["tokenize"], file)


def by_making_again(trial: Trial, out: Path, file: Path) -> None:
    """Runs the stage again that made a folder."""
    stage = {folder: stage for stage, folder in OUT.items()}[out.name]
    if not trial.refusal(trial.run(*trial.world.words(stage, out=out)), file, out):
        must_be_undisturbed(trial, stage, out)


MAX_REDONE = 4
"""Steps that a run does when it goes on for two more, from the older one of its checkpoints."""
STATE = "checkpoints/*/state.safetensors"
META = "checkpoints/*/meta.json"
TARGETS = {
    "store.json": Target("tokens", "store.json", by_export, "samples/store.json"),
    "plan.parquet": Target("tokens", "plan.parquet", by_export, "samples/plan.parquet"),
    "frames.parquet": Target("tokens", "frames.parquet", by_export, "samples/plan.parquet"),
    "zarr.json": Target("tokens", "*.zarr/zarr.json", by_export),
    "shards": Target("tokens", "*.zarr/c/*/0/0/0", by_export),
    "manifest": Target("tokens", "manifest/*", by_export),
    "sampled shards": Target("samples", "*.zarr/c/*/0/0/0", by_export),
    "token tars": Target("tokens-tars", "*.tar", by_import),
    "run.json": Target("run", "run.json", by_going_on, "other/run/run.json"),
    "model.safetensors": Target("run", "*.safetensors", by_sampling, "other/run/model.safetensors"),
    "metrics.jsonl": Target("run", "metrics.jsonl", by_going_on, "other/run/metrics.jsonl"),
    "metrics.jsonl in a report": Target(
        "run", "metrics.jsonl", by_report, "other/run/metrics.jsonl"
    ),
    "previews": Target("run", "previews/tokens.parquet", by_report),
    "last": Target("run", "checkpoints/last", by_going_on),
    "meta.json": Target("run", META, by_going_on),
    "checkpoint": Target("run", STATE, by_going_on),
    "frames.parquet of fit-tokenizer": Target("tokenizer-run", "frames.parquet", by_going_on),
    "run.json of fit-tokenizer": Target("tokenizer-run", "run.json", by_going_on, "run/run.json"),
    "meta.json of fit-tokenizer": Target("tokenizer-run", META, by_going_on),
    "checkpoint of fit-tokenizer": Target("tokenizer-run", STATE, by_going_on),
    "tokenizer": Target("tokenizer.safetensors", "", by_encoding),
    "tokenizer in decode": Target("tokenizer.safetensors", "", by_decoding, "other.safetensors"),
    "frames": Target("frames", "*/*/*.png", by_encoding),
    "frame lists": Target("frames", "*.txt", by_encoding_again),
    "frame tars": Target("frame-tars", "*.tar", by_encoding_again),
    "extract's records": Target("frames", ".extract/*.json", by_making_again),
    "decode.json": Target("videos", "decode.json", by_making_again),
}
"""Every kind of file that a command reads again."""


def damage(trial: Trial, how: str) -> None:
    """Damages one file of a kind drawn at random, and reads it."""
    target = TARGETS[trial.draw.choice(list(TARGETS))]
    artefact = trial.copy(target.artefact)
    files = sorted(artefact.glob(target.pattern)) if target.pattern else [artefact]
    file = trial.draw.choice(files)
    others = []
    if how == "swap":
        others = [other for other in files if other.read_bytes() != file.read_bytes()]
        if target.other:
            others = [trial.world.root / target.other]
        if not others:
            return
    trial.swapped = disturb(trial.draw, how, file, others, inside=artefact)
    trial.faults += 1
    target.read(trial, artefact, file)


def disturb(
    draw: random.Random, how: str, file: Path, others: Sequence[Path], *, inside: Path
) -> Path | None:
    """Damages a file; returns the one of the `others` that it was swapped with, if it was.

    Of two that lie `inside`, each takes the other's place.
    """
    data = file.read_bytes()
    match how:
        case "flip":
            _put(file, flip(draw, file))
        case "truncate":
            _put(file, truncate(draw, file))
        case "empty":
            _put(file, b"")
        case "delete":
            file.unlink()
        case "swap":
            other = draw.choice(others)
            _put(file, other.read_bytes())
            if other.is_relative_to(inside):
                _put(other, data)
            return other
    return None


def _put(file: Path, data: bytes) -> None:
    """Replaces a file: its bytes may be linked to those of the undisturbed flow."""
    file.unlink()
    file.write_bytes(data)


HOW = ("flip", "truncate", "empty", "delete", "swap")
for how in HOW:
    kind(f"{how} a file")(functools.partial(damage, how=how))
