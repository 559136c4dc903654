"""The page beside what was pushed: README.md, whose head a hub reads."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from pipeline.storage.files import printable

SHEETS = ("sheet.webp", "sheet.gif")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says."""

    name: str
    place: str
    """What to give to `mebt pull --from`."""
    facts: Sequence[tuple[str, str]]
    """Rows of a table: what it is, and its identity."""
    files: Sequence[str]
    license: str | None = None
    params: str = ""
    """Text of params.yaml."""
    evaluation: Mapping[str, Any] | None = None
    """Content of metrics.json: `metrics`, `protocol`, `not_computed`."""
    copying: str = ""
    """Whether samples are copies of training windows, in a sentence; empty: not measured."""


def write_card(about: About) -> str:
    """Returns the text of the page."""
    kind = "model" if "model.safetensors" in about.files else "tokenizer"
    parts = [f"# {_plain(about.name)}", _first_line(kind)]
    if sheet := _sheet(about.files):
        parts.append(f"![What the model draws]({sheet})")
    parts += ["## How to use it", _block("\n".join(_commands(about, kind)))]
    parts += ["## What it is", _table(("what", "value"), about.facts)]
    if about.evaluation:
        parts += _numbers(about.evaluation)
    if about.copying:
        parts.append(_plain(about.copying))
    if about.params:
        parts += ["## Values", _block(about.params.strip(), "yaml")]
    return _head(about, kind) + "\n\n".join(parts) + "\n"


def _head(about: About, kind: str) -> str:
    head: dict[str, Any] = {"license": about.license} if about.license else {}
    head |= {"library_name": "mebt", "tags": ["mebt", "video-generation", kind]}
    text = io.StringIO()
    yaml = YAML()
    yaml.dump(head, text)
    return f"---\n{text.getvalue()}---\n\n"


def _first_line(kind: str) -> str:
    if kind == "tokenizer":
        return "A 3D VQGAN of `mebt`: turns windows of video into tokens, and back."
    return "A masked transformer of `mebt`: draws videos as tokens, which its tokenizer decodes."


def _sheet(files: Sequence[str]) -> str | None:
    """Names the picture to show: the samples that were given, else the last preview."""
    previews = sorted(name for name in files if re.fullmatch(r"previews/.*\.webp", name))
    found = [name for name in SHEETS if name in files] or previews[-1:]
    return found[0] if found else None


def _commands(about: About, kind: str) -> list[str]:
    name = re.sub(r"[^\w.-]", "-", about.name)
    lines = [f"mebt pull --from {about.place} --out {name}"]
    if kind == "model":
        params = f" --params {name}/params.yaml" if about.params else ""
        lines.append(f"mebt sample --run {name}{params} --out samples/tokens")
        if "tokenizer.safetensors" in about.files:
            lines.append(
                f"mebt decode --tokens samples/tokens --tokenizer {name}/tokenizer.safetensors"
                f"{params} --out samples/videos"
            )
    else:
        lines.append(
            f"mebt tokenize --frames frames --tokenizer {name}/tokenizer.safetensors --out tokens"
        )
    return lines


def _numbers(evaluation: Mapping[str, Any]) -> list[str]:
    rows = [(key, f"{value:.6g}") for key, value in evaluation["metrics"].items()]
    parts = ["## Numbers", _table(("metric", "value"), rows)]
    if missing := evaluation.get("not_computed"):
        parts.append(_table(("not computed", "why"), list(missing.items())))
    protocol = json.dumps(evaluation["protocol"], indent=2)
    return [*parts, "### How they were measured", _block(protocol, "json")]


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {_plain(left)} | {_plain(right)} |" for left, right in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines])


def _plain(text: object) -> str:
    """Returns text that is no markup and stays in its cell."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", printable(str(text)))


def _block(text: str, language: str = "") -> str:
    """Returns a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
