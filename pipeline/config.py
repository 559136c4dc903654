"""params.yaml and `--set` -> the frozen dataclass that owns each section, strictly checked."""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ConfigError, PipelineError
from pipeline.size import Size
from pipeline.storage.files import read_text

SECTIONS = (
    "extract",
    "tokenizer",
    "fit_tokenizer",
    "tokenize",
    "model",
    "train",
    "sample",
    "decode",
    "evaluate",
)
"""Every section that params.yaml may hold."""

FixedPrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""Of products and attention, in the words of Lightning Fabric; auto: see `pipeline.precision`."""

TokenizerPrecision = Literal["32-true", "bf16-mixed"]
"""Of a tokenizer's convolutions: never chosen for the user, as it changes a few tokens."""

Config = TypeVar("Config")


def _parse(text: str, where: str) -> Any:
    # YAML 1.2, as DVC reads it: to a YAML 1.1 reader 1e-4 is a string and `off` is False.
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {problem}.") from None
    except (RecursionError, ValueError) as error:  # Too deep; a number or date that is none.
        raise ConfigError(f"{where}: cannot be read: {str(error).rstrip('.')}.") from None


def suggest(word: str, known: Sequence[str]) -> str:
    """Returns `did you mean …? ` if a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def read_yaml(path: Path, advice: str = "") -> dict[str, Any]:
    """Reads a YAML file of keys and values. `advice` says what to do if there is no such file."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist{advice}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {str(error).rstrip('.')}.") from None
    tree = _parse(text, str(path))
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections, found a {type(tree).__name__}.")
    return tree


def load_params(params: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Reads the file and applies `section.key=value` overrides; sections must be known."""
    tree = read_yaml(params, "; write one with `mebt init`, or name one with --params")
    for name, section in tree.items():
        _check_section(str(name), str(params))
        if not isinstance(section, dict | None):
            raise ConfigError(f"{params}: {name}: must hold keys and values, found {section!r}.")
    return with_overrides({name: values or {} for name, values in tree.items()}, overrides)


def with_overrides(
    values: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns sections with `section.key=value` overrides applied."""
    sections = {name: dict(section) for name, section in values.items()}
    for override in overrides:
        path, equals, value = override.partition("=")
        name, _, key = path.partition(".")
        if not (equals and name and key):
            raise ConfigError(f"--set {override}: write section.key=value.")
        _check_section(name, f"--set {override}")
        sections.setdefault(name, {})[key] = _parse(value, f"--set {override}")
    return sections


def _check_section(name: str, where: str) -> None:
    if name not in SECTIONS:
        raise ConfigError(
            f"{where}: unknown section {name!r}; {suggest(name, SECTIONS)}"
            f"known sections: {', '.join(SECTIONS)}."
        )


def load_section(
    params: Path, section: str, cls: type[Config], overrides: Sequence[str] = ()
) -> Config:
    """Builds the dataclass that owns `section`; a key that is not given keeps its default."""
    values = load_params(params, overrides).get(section, {})
    return build(cls, values, where=f"{params}: {section}")


def build(cls: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """Builds the dataclass `cls`, refusing unknown keys, missing keys and wrong types.

    Raises `ConfigError`; `where` opens its message.
    """
    assert dataclasses.is_dataclass(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}; {suggest(str(key), known)}"
                f"known keys: {', '.join(known)}."
            )
    hints = typing.get_type_hints(cls)
    given = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in given
    ]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing.")
    try:
        return typing.cast(Config, cls(**given))
    except (ValueError, PipelineError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        is_list = isinstance(value, list | tuple)
        fitting = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == is_list]
        try:
            return _convert((fitting or kinds)[0], value, where)
        except ConfigError:
            is_number = type(value) in (int, float) and bool({type(value), float} & {*kinds})
            if len(kinds) == 1 or is_number:
                raise
            expected = " or ".join(_described(kind, kinds) for kind in kinds)
            raise ConfigError(f"{where}: expected {expected}, got {_shown(value)}.") from None
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        choices = ", ".join(map(str, arguments))
        raise ConfigError(f"{where}: unknown value {value!r}; choose from {choices}.")
    if origin is tuple and isinstance(value, list | tuple):
        kinds = list(arguments)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}.")
        return tuple(
            _convert(kind, item, f"{where}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {
            _convert(arguments[0], key, where): _convert(arguments[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(typing.cast(type, hint), value, where=where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: the number is too large.") from None
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or not isinstance(value, bool))
    ):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: must be a finite number, got {value}.")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ConfigError(f"{where}: the number is too large.")
        return value
    expected = "a list" if origin is tuple else getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: expected {expected}, got {_shown(value)}.")


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def _described(kind: Any, kinds: Sequence[Any]) -> str:
    """Says what a value of one of several kinds looks like."""
    if typing.get_origin(kind) is not tuple:
        return getattr(kind, "__name__", str(kind))
    is_size = tuple(kinds) == typing.get_args(Size)
    return "[height, width]" if is_size else f"a list of {len(typing.get_args(kind))}"


def as_dict(config: Any) -> dict[str, Any]:
    """Turns a config into what JSON can hold: tuples become lists."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def fingerprint(value: object) -> str:
    """Returns the SHA-256 of `value` as canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
