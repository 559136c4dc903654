import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import as_dict, build, fingerprint, load_params, load_section
from pipeline.errors import ConfigError
from pipeline.video.tiles import ExtractConfig
from pipeline.windows.plan import TokenizeConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    batch_size: int
    rate: float = 1e-3
    flip: bool = False
    grid: tuple[int, int, int] = (2, 3, 5)
    layers: tuple[str, ...] = ()
    norm: Literal["group", "batch"] = "group"
    limit: int | None = 7
    rounds: float | tuple[float, float] = 1.0
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


def section(tmp_path: Path, text: str, *overrides: str) -> Outer:
    params = tmp_path / "params.yaml"
    params.write_text(text)
    return load_section(params, "train", Outer, overrides)


def test_a_section_becomes_its_dataclass(tmp_path: Path) -> None:
    text = "train: {batch_size: 4, rate: 1e-4, grid: [1, 2, 3], layers: [a, b], limit: null}"
    config = section(tmp_path, text)
    assert config == Outer(batch_size=4, rate=1e-4, grid=(1, 2, 3), layers=("a", "b"), limit=None)


def test_a_value_may_be_a_number_or_a_pair(tmp_path: Path) -> None:
    for text, value in (("3", 3), ("[3, 5]", (3, 5))):
        assert section(tmp_path, f"train: {{batch_size: 4, rounds: {text}}}").rounds == value
    for text in ("x", "[3, 5, 7]", "[3, x]", "null", "true"):
        with pytest.raises(ConfigError, match=r"rounds: expected float or a list of 2, got ."):
            section(tmp_path, f"train: {{batch_size: 4, rounds: {text}}}")
    with pytest.raises(ConfigError, match="rounds: must be a finite number"):
        section(tmp_path, "train: {batch_size: 4, rounds: .inf}")


@pytest.mark.parametrize("value", ["abc", [64], [64, "x"], 6.5, None])
@pytest.mark.parametrize("owner", [ExtractConfig, TokenizeConfig])
def test_a_size_that_is_none_says_that_it_may_be_two_sides(owner: type, value: object) -> None:
    with pytest.raises(ConfigError, match=r"size: expected int or \[height, width\], got ."):
        build(owner, {"size": value}, where="here")
    with pytest.raises(ConfigError, match="size: the number is too large"):
        build(owner, {"size": 1 << 63}, where="here")


def test_set_overrides_one_value(tmp_path: Path) -> None:
    config = section(tmp_path, "train: {batch_size: 4}", "train.batch_size=9", "train.flip=true")
    assert (config.batch_size, config.flip) == (9, True)


def test_an_integer_serves_as_a_float(tmp_path: Path) -> None:
    assert section(tmp_path, "train: {batch_size: 4, rate: 1}").rate == 1.0


REFUSED = [
    ("train: {batch: 8, batch_size: 2}", "train: unknown key 'batch'; did you mean 'batch_size'? "),
    ("train: {}", "train: 'batch_size' is missing."),
    ("train: {batch_size: 8.0}", "batch_size: expected int, got 8.0 (float)."),
    ("train: {batch_size: true}", "batch_size: expected int, got True (bool)."),
    ("train: {batch_size: 8, flip: 1}", "flip: expected bool, got 1 (int)."),
    ("train: {batch_size: 8, rate: fast}", "rate: expected float, got 'fast' (str)."),
    ("train: {batch_size: 8, rate: .nan}", "rate: must be a finite number, got nan."),
    ("train: {batch_size: 8, rate: -.inf}", "rate: must be a finite number, got -inf."),
    (f"train: {{batch_size: 8, rate: 1{400 * '0'}}}", "rate: the number is too large."),
    (f"train: {{batch_size: 1{5000 * '0'}}}", "cannot be read: Exceeds the limit"),
    ("train: {batch_size: 9223372036854775808}", "batch_size: the number is too large."),
    ("[" * 5000, "cannot be read: maximum recursion depth exceeded"),
    ("train: {batch_size: 8, grid: [1, 2]}", "grid: expected 3 values, got 2."),
    ("train: {batch_size: 8, grid: [1, 2, x]}", "grid[2]: expected int, got 'x' (str)."),
    ("train: {batch_size: 8, layers: dense}", "layers: expected a list, got 'dense' (str)."),
    (
        "train: {batch_size: 8, norm: layer}",
        "norm: unknown value 'layer'; choose from group, batch.",
    ),
    (
        "train: {batch_size: 8, inner: {dept: 1}}",
        "inner: unknown key 'dept'; did you mean 'depth'?",
    ),
    ("train: {batch_size: 0}", "train: batch_size must be at least 1, got 0."),
    ("train: 3", "train: must hold keys and values, found 3."),
    ("trian: {}", "unknown section 'trian'; did you mean 'train'? known sections: extract,"),
    ("- 1", "must hold sections, found a list."),
    ("train: {batch_size: [}", "line 1: not YAML:"),
    ("train: {batch_size: 1, batch_size: 2}", "not YAML: found duplicate key"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        section(tmp_path, text)
    assert message in str(error.value)
    assert "params.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["train", "train.x", "batch_size=2", ".x=1", "train.=1"])
def test_a_malformed_override_says_how_to_write_it(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        section(tmp_path, "train: {batch_size: 1}", override)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load_params(tmp_path / "none.yaml")


def test_a_config_survives_json() -> None:
    config = Outer(batch_size=3, layers=("a",), limit=None, inner=Inner(depth=5))
    assert build(Outer, as_dict(config), where="here") == config


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError):
        fingerprint(math.nan)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=st.text(max_size=60))
def test_no_text_makes_the_reader_crash(tmp_path: Path, text: str) -> None:
    params = tmp_path / "params.yaml"
    params.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_params(params)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_params_may_begin_with_a_byte_order_mark(tmp_path: Path, codec: str) -> None:
    text = "# caf\u00e9\r\ntrain:\r\n  batch_size: 2\r\n  layers: [caf\u00e9]\r\n"
    (tmp_path / "params.yaml").write_bytes(text.encode(codec))
    config = load_section(tmp_path / "params.yaml", "train", Outer)
    assert (config.batch_size, config.layers) == (2, ("caf\u00e9",))


def test_params_that_are_not_utf_8_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"# caf\xe9\ntrain: {batch_size: 2}\n")
    with pytest.raises(ConfigError, match=r"params\.yaml cannot be read: .*0xe9.*save it as UTF-8"):
        load_section(tmp_path / "params.yaml", "train", Outer)
