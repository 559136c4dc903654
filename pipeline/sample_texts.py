"""What others write beside a sample of a WebDataset tar: its caption and its label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.condition_files import is_label
from pipeline.errors import PipelineError
from pipeline.storage.files import parse_json, printable
from pipeline.storage.tars import Member

CAPTIONS, LABELS = ("caption", "text"), ("label", "class", "cls", "class_name")
"""What a .json calls them; of several, the first."""
LABELLED = ("json", "cls")
"""Extensions of what may hold a label; of several, the first that does."""
SHOWN = 5
"""Texts that are no labels, each of which has a line."""


def read_texts(sample: Mapping[str, Member]) -> tuple[dict[str, str], list[tuple[Member, str]]]:
    """Returns `caption` and `label` of a sample, as far as it has any.

    And the members that should hold them and do not, each with a line that says why.
    """
    found: dict[str, str] = {}
    wrong = []
    for kind in ("json", "txt", "cls"):
        if kind not in sample:
            continue
        member = sample[kind]
        try:
            text = member.read_text(PipelineError)
            if kind == "json":
                record = parse_json(text, member, PipelineError, "sample")
                found |= _first(record, caption=CAPTIONS, label=LABELS)
            else:
                name = "caption" if kind == "txt" else "label"
                found.setdefault(name, text.decode().strip())
        except UnicodeError:
            wrong.append((member, f"{member} is no text in UTF-8"))
        except PipelineError as error:
            wrong.append((member, str(error).rstrip(".")))
    return found, wrong


@dataclass
class SampleLabels:
    """The labels beside samples, by the videos that they are of."""

    labels: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """Of what is there and is no label, a line each."""

    def add(self, videos: Iterable[str], sample: Mapping[str, Member], source: str) -> None:
        """Takes the label of a sample of these videos; `source` names it in messages."""
        texts, wrong = read_texts({kind: sample[kind] for kind in LABELLED if kind in sample})
        self.wrong += [f"{why}; it says no label" for _, why in wrong]
        label = texts.get("label", "")
        if is_label(label):
            self.labels |= dict.fromkeys(videos, label)
        elif label:
            self.wrong.append(f"{printable(source)} has no label in {label[:50]!r}")

    def said(self) -> Sequence[str]:
        """Says what is no label: of the first few what, of all how many."""
        more = len(self.wrong) - SHOWN
        return [*self.wrong[:SHOWN], *([f"{more:,} more are no labels"] if more > 0 else [])]


def _first(record: Mapping[str, object], **keys: Sequence[str]) -> dict[str, str]:
    """Returns under each name the first text or whole number that a record has for its keys."""
    found = {}
    for name, asked in keys.items():
        values = [record[key] for key in asked if isinstance(record.get(key), str | int)]
        if values:
            found[name] = str(values[0]).strip()
            found[name].encode()  # JSON may hold halves of characters, which no table can.
    return found
