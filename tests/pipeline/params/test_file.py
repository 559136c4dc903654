"""Params files as text: what is written is what is read."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.params.file import WIDTH, to_yaml

FILTER = "lut=y='clip(val,16,235)':name=word-that-ends-in-hyphens"


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 5e-6, "null", "32-true", "no", "a: b", [], ["decode"] * 24, [FILTER] * 4],
)
def test_a_value_that_is_written_is_read_as_it_was(value: Any) -> None:
    text = to_yaml({"section": {"key": value}})
    assert YAML(typ="safe", pure=True).load(text) == {"section": {"key": value}}
    assert max(map(len, text.splitlines())) <= WIDTH
