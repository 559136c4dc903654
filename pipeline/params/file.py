"""Writes params files as YAML, each key below the docstring of its field."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

WIDTH = 100


def explanations(cls: type) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass, inherited ones too, on one line."""
    texts: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[node.target.id] = " ".join(text.split())
    return texts


def first_paragraph(cls: type) -> str:
    """Returns the first paragraph of a class's docstring, on one line."""
    return " ".join(str(inspect.getdoc(cls)).partition("\n\n")[0].split())


def commented_yaml(
    tree: Mapping[str, Mapping[str, Any]],
    owners: Mapping[str, type],
    *,
    title: str,
    reasons: Mapping[str, str],
) -> str:
    """Writes sections as YAML with a comment above each key.

    `owners` has the dataclass of each section; `reasons` says of `section.key` why it has its
    value, where there is more to say than what the key means.
    """
    blocks = [_comment(title, indent="")]
    for name, section in tree.items():
        lines = [_comment(first_paragraph(owners[name]), indent=""), f"{name}:"]
        means, hints = explanations(owners[name]), get_type_hints(owners[name])
        for key, value in section.items():
            lines.append(_comment(means[key] + _choices(hints[key], means[key])))
            if reason := reasons.get(f"{name}.{key}"):
                lines.append(_comment(f"-> {reason}"))
            lines.append(yaml_line(key, value))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _choices(hint: Any, text: str) -> str:
    """Lists the choices of a `Literal`, unless the text about the key does."""
    kinds = [hint, *get_args(hint)]  # The second for `Literal[…] | None`.
    words = [w for kind in kinds if get_origin(kind) is Literal for w in get_args(kind)]
    return "" if all(word in text for word in words) else f" One of {', '.join(words)}."


def _comment(text: str, *, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def to_yaml(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes sections as YAML 1.2, with lists in one piece."""
    blocks = []
    for name, section in tree.items():
        lines = [yaml_line(key, value) for key, value in section.items()]
        blocks.append("\n".join([f"{name}:", *lines]))
    return "\n\n".join(blocks) + "\n"


def yaml_line(key: str, value: Any) -> str:
    """Writes one key of a section."""
    if isinstance(value, list):
        text = f"{key}: [{', '.join(map(_scalar, value))}]"
        return textwrap.fill(
            text,
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,  # The break would be a space in the value.
        )
    return f"  {key}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w-]*[A-Za-z][\w-]*", value):
        return value if value not in ("null", "true", "false") else json.dumps(value)
    return json.dumps(value)
