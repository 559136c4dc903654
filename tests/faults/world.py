"""What commands make when nothing goes wrong: what trials copy, disturb, and compare with."""

import json
import shutil
import time
from pathlib import Path

from safetensors.torch import load_file

from tests.faults.arms import Arm, Armed, Tally
from tests.helpers.small import Flow, content, fork, has_ended, make_tokenizer

MORE = {
    "tokenize": ("--set", "tokenize.batch_size=8"),
    "train": ("--set", "train.max_steps=10", "--set", "train.preview_every=3"),
    "sample": ("--set", "sample.draft_steps=2"),
    "decode": ("--exact",),
}
"""What a stage is given beside its paths and the small params."""
OUT = {
    "extract": "frames",
    "fit-tokenizer": "tokenizer-run",
    "tokenize": "tokens",
    "train": "run",
    "sample": "samples",
    "decode": "videos",
}
RUNS = {"fit-tokenizer": "tokenizer.safetensors", "train": "model.safetensors"}
"""Stages that make a run, and the file of its result."""
LONGER = {
    "fit-tokenizer": ("--set", "fit_tokenizer.max_steps=6"),
    "train": ("--set", "train.max_steps=12"),
}
"""What makes a run go on when it is done."""
TIMED = ("_per_second", "data_wait", "memory_gb", "seconds_per_step")
"""Ends of the names of logged numbers that no two runs share."""


class World(Flow):
    """A folder with every artefact, and what longer or other runs make."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        super().__init__(root)
        self.results: dict[str, dict[str, object]] = {}
        """What each stage makes undisturbed."""
        self.seconds: dict[str, float] = {}
        """How long each stage takes in a process forked for it."""
        self.changes: dict[str, int] = {}
        """How many changes each stage makes to its folder."""
        for stage, out in OUT.items():
            began = time.monotonic()
            self.make(stage, out=out)
            self.seconds[stage] = time.monotonic() - began
            self.changes[stage] = int((root / "tally").read_text())
            self.results[stage] = result(stage, root / out)
        self.longer: dict[str, dict[str, object]] = {}
        """What runs become when they are trained for longer."""
        self._make_longer_and_other()
        self.contents: dict[str, dict[str, bytes] | bytes] = {}
        """What else commands make of the artefacts, by file or folder."""
        self._take_out()

    def _make_longer_and_other(self) -> None:
        make_tokenizer(self.root / "other.safetensors", seed=1)
        for stage, more in LONGER.items():
            shutil.copytree(self.root / OUT[stage], self.root / "longer" / OUT[stage])
            self.make(stage, *more, out=f"longer/{OUT[stage]}")
            self.longer[stage] = result(stage, self.root / "longer" / OUT[stage])
        self.make("train", "--set", "train.seed=1", out="other/run")
        self.make("extract", "--format", "webdataset", out="frame-tars")

    def _take_out(self) -> None:
        root = self.root
        for store in ("tokens", "samples"):
            tars = root / f"{store}-tars"
            words = ["tokens", "export", root / store, "--format", "webdataset", "--out", tars]
            self._run(list(map(str, words)))
            self.contents[tars.name] = content(tars)
        page = root / "report.html"
        self._run(self.report(root / "run", page))
        self.contents[page.name] = page.read_bytes()

    def report(self, run: Path, out: Path) -> list[str]:
        """Returns the command that shows a run."""
        given = {"tokens": self.root / "tokens", "run": run, "out": out}
        given["tokenizer"] = self.root / "tokenizer.safetensors"
        return ["report", *(word for name in given for word in (f"--{name}", str(given[name])))]

    def make(self, stage: str, *more: str, out: str) -> None:
        """Runs a stage undisturbed in a process of its own."""
        (self.root / "tally").unlink(missing_ok=True)
        tally = Tally(self.root / out, self.root / "tally")
        self._run(self.words(stage, *more, out=self.root / out), tally)

    def _run(self, arguments: list[str], *arms: Arm) -> None:
        said = self.root / "said.txt"
        process = fork(arguments, run=Armed(said, arms))
        assert has_ended(process) and process.exitcode == 0, said.read_text()

    def must_be_untouched(self) -> None:
        """Checks that no trial reached what all of them copy."""
        for stage, out in OUT.items():
            assert result(stage, self.root / out) == self.results[stage], stage

    def words(self, stage: str, *more: str, out: Path) -> list[str]:
        """Returns the command that makes a stage's artefact anew in `out`."""
        return self.arguments(stage, *MORE.get(stage, ()), *more, out=str(out))


def result(stage: str, out: Path) -> dict[str, object]:
    """Returns what a stage made, in a form that is equal for equal artefacts.

    What a kill left half-written does not count, nor do TensorBoard's files and times in a log.
    """
    if stage not in RUNS:
        return {name: data for name, data in content(out).items() if ".partial" not in name}
    name = (out / "checkpoints" / "last").read_text().strip()
    state = load_file(out / "checkpoints" / name / "state.safetensors")
    return {
        "result": (out / RUNS[stage]).read_bytes(),
        "record": (out / "run.json").read_bytes(),
        "last": name,
        "state": {key: tensor.numpy().tobytes() for key, tensor in state.items()},
        "log": log(out / "metrics.jsonl"),
        "previews": [file.read_bytes() for file in (out / "previews").glob("[!.]*")],
    }


def log(path: Path) -> list[dict[str, object]]:
    """Returns the lines of a log, without the numbers that depend on the machine."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in lines]


def finished(stage: str, out: Path) -> set[str]:
    """Names the parts of a stage's work that are done, and shall never have to be done again."""
    if stage == "extract":
        return {path.name for path in (out / ".extract").glob("[!.]*.json")}
    if stage == "decode":
        return {path.name for path in out.glob("[!.]*.mp4")}
    if stage not in RUNS:
        return {path.name for path in (out / "manifest").glob("[!.]*.parquet")}
    pointer = out / "checkpoints" / "last"
    done = int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else 0
    return {f"step {step + 1}" for step in range(done)}
