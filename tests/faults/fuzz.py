"""Values drawn by hypothesis: accepted, or refused in one line; never a traceback."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, seed, settings
from ruamel.yaml import YAML

from mebt import MeBTConfig, load_model
from pipeline.config import SECTIONS, fingerprint, load_section
from pipeline.errors import PipelineError
from pipeline.store.layout import StoreInfo
from pipeline.store.reader import TokenStore
from tests.faults.arms import MemoryLimit
from tests.faults.hostile import ENOUGH, header_of, rewrite, safetensors
from tests.faults.trial import Trial, UnclearError, kind
from tests.helpers.small import fork, has_ended
from tests.test_project import owner
from tokenizer import VQGANConfig, load_tokenizer

EXAMPLES = 20
"""Values drawn in one trial."""

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([1 << 16, 1 << 31, (1 << 63) - 1, 1 << 63, 10**30, -(1 << 63)]),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Whatever YAML or JSON can say."""


def params(folder: Path, section: str, key: str, value: Any) -> None:
    """Reads a params file with one value of a section drawn."""
    file = folder / "params.yaml"
    YAML().dump({section: {key: value}}, file)
    load_section(file, section, owner(section))


def tokenizer(folder: Path, key: str, value: Any) -> None:
    """Loads a tokenizer with one value of its config drawn."""
    load_tokenizer(_with_config(folder / "tokenizer.safetensors", key, value))


def model(folder: Path, key: str, value: Any) -> None:
    """Loads a model with one value of its config drawn."""
    load_model(_with_config(folder / "model.safetensors", key, value))


def store(folder: Path, key: str, value: Any) -> None:
    """Verifies a store with one value of its record drawn, and a fingerprint that fits."""
    root = folder / "tokens"
    record = json.loads((root / "store.json.whole").read_text())
    record["info"][key] = value
    record["fingerprint"] = fingerprint({key: record[key] for key in ("schema", "info", "plan")})
    (root / "store.json").write_text(json.dumps(record))
    for line in TokenStore(root, allow_partial=True).verify():
        raise PipelineError(line)


def _with_config(file: Path, key: str, value: Any) -> Path:
    whole = file.with_suffix(".whole")
    header, data = header_of(whole), whole.read_bytes()
    about = json.loads(header["__metadata__"]["mebt"])
    del about["header"]  # Its hash; without one, it is a file of the first versions.
    config = json.dumps({**json.loads(about["config"]), key: value})
    header["__metadata__"]["mebt"] = json.dumps({**about, "config": config})
    rest = data[8 + int.from_bytes(data[:8], "little") :]
    return rewrite(file, safetensors(header) + rest)


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


PARAMS = [(section, key) for section in SECTIONS for key in _fields(owner(section))]
READERS: dict[str, tuple[Callable[..., None], st.SearchStrategy[tuple[Any, ...]]]] = {
    "params": (params, st.sampled_from(PARAMS)),
    "tokenizer": (tokenizer, st.tuples(st.sampled_from(_fields(VQGANConfig)))),
    "model": (model, st.tuples(st.sampled_from(_fields(MeBTConfig)))),
    "store": (store, st.tuples(st.sampled_from(_fields(StoreInfo)))),
}
"""What reads a value that is drawn, and what else it is told: the name of the value."""


@dataclasses.dataclass(frozen=True)
class Fuzz:
    """Reads values drawn by hypothesis, in a process of its own, and writes what it found."""

    reader: str
    folder: Path
    seed: int

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Writes to `found.json` how many values were read and refused, and what was unclear."""
        found: dict[str, Any] = {"read": 0, "refused": 0, "unclear": None}
        read, names = READERS[self.reader]

        @seed(self.seed)
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(names, VALUES)
        def run(name: tuple[Any, ...], value: Any) -> None:
            found["read"] += 1
            try:
                read(self.folder, *name, value)
            except (PipelineError, ValueError) as error:
                found["refused"] += 1
                if type(error) is ValueError or isinstance(error, PipelineError):
                    assert str(error) and "\n" not in str(error), (name, value, error)
                    return
                raise

        MemoryLimit(ENOUGH)()
        try:
            run()
        except Exception as error:
            found["unclear"] = f"{error!r} {getattr(error, '__notes__', '')}"
        (self.folder / "found.json").write_text(json.dumps(found))


@kind("values and headers drawn at random")
def fuzz(trial: Trial) -> None:
    """Reads some values of one kind."""
    reader = trial.draw.choice(list(READERS))
    for file in (trial.copy("tokenizer.safetensors"), trial.copy("run") / "model.safetensors"):
        file.rename(trial.folder / f"{file.stem}.whole")
    info = trial.copy("tokens") / "store.json"
    info.rename(info.with_suffix(".json.whole"))
    process = fork([], run=Fuzz(reader, trial.folder, trial.draw.randrange(1 << 30)))
    has_ended(process)
    found = json.loads((trial.folder / "found.json").read_text())
    trial.faults += found["read"]
    trial.refused += found["refused"]
    if found["unclear"]:
        raise UnclearError(f"{reader}: {found['unclear']}")
