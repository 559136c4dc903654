"""JSON schema of params.yaml, from the dataclasses: editors complete and check values by it."""

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.config import as_dict
from pipeline.params.file import explanations, first_paragraph

NAME = "params.schema.json"
MODELINE = f"# yaml-language-server: $schema={NAME}"
"""By this line editors find the schema in the folder of the params file."""

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def json_schema(owners: Mapping[str, type]) -> dict[str, Any]:
    """Returns the schema (draft 7) of sections, each of which a dataclass owns.

    It knows keys, types, choices, defaults and docstrings. Ranges, and what values mean together,
    are for the dataclasses to check.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of every stage of mebt",
        "type": "object",
        "properties": {name: _section(cls) for name, cls in owners.items()},
        "additionalProperties": False,
    }


def _section(cls: type) -> dict[str, Any]:
    means, hints, defaults = explanations(cls), get_type_hints(cls), as_dict(cls())
    return {
        "description": first_paragraph(cls),
        "type": ["object", "null"],
        "properties": {
            field.name: {
                "description": means[field.name],
                "default": defaults[field.name],
                **_values(hints[field.name]),
            }
            for field in dataclasses.fields(cls)
        },
        "additionalProperties": False,
    }


def _values(hint: Any) -> dict[str, Any]:
    """Returns which values a type hint allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [_values(kind) for kind in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _values(arguments[0])}
    if origin is tuple:
        count, items = len(arguments), [_values(kind) for kind in arguments]
        return {"type": "array", "items": items, "minItems": count, "maxItems": count}
    return {"type": TYPES[hint]}
