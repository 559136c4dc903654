"""The JSON schema of a params file: every type has its word."""

from dataclasses import dataclass
from typing import Literal

from jsonschema import Draft7Validator

from pipeline.params.schema import json_schema


@dataclass(frozen=True, kw_only=True)
class Section:
    """How it is
    done.

    And more."""

    rate: float = 1e-3
    """Updates per
    second."""
    norm: Literal["group", "batch"] = "group"
    """Which."""
    limit: int | None = None
    """Most."""
    grid: tuple[int, int] = (2, 3)
    """Sizes."""
    names: tuple[str, ...] = ()
    """Who."""
    flip: bool = False
    """Mirror it."""


def test_every_kind_of_field_is_described() -> None:
    schema = json_schema({"one": Section})
    Draft7Validator.check_schema(schema)
    section = schema["properties"]["one"]
    assert section["description"] == "How it is done."
    assert section["properties"] == {
        "rate": {"description": "Updates per second.", "default": 1e-3, "type": "number"},
        "norm": {"description": "Which.", "default": "group", "enum": ["group", "batch"]},
        "limit": {
            "description": "Most.",
            "default": None,
            "anyOf": [{"type": "integer"}, {"type": "null"}],
        },
        "grid": {
            "description": "Sizes.",
            "default": [2, 3],
            "type": "array",
            "items": [{"type": "integer"}, {"type": "integer"}],
            "minItems": 2,
            "maxItems": 2,
        },
        "names": {
            "description": "Who.",
            "default": [],
            "type": "array",
            "items": {"type": "string"},
        },
        "flip": {"description": "Mirror it.", "default": False, "type": "boolean"},
    }
