"""What others write beside a sample of a WebDataset tar: its caption and its label."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.condition_files import CAPTION, LABEL, VideoTexts
from pipeline.errors import PipelineError
from pipeline.storage.files import parse_json, printable
from pipeline.storage.tars import Member

NAMES = {CAPTION: ("caption", "text"), LABEL: ("label", "class", "cls", "class_name")}
"""What a .json calls them; of several, the first."""
KINDS = {LABEL: ("json", "cls"), CAPTION: ("json", "txt")}
"""Extensions of what may hold a label or caption; of several, the first that does."""


def read_texts(
    sample: Mapping[str, Member], asked: Sequence[str] = tuple(NAMES)
) -> tuple[dict[str, str], list[tuple[Member, str]]]:
    """Returns `caption` and `label` of a sample, as far as it has any; or what is `asked` of them.

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
                texts, others = _texts_of(record, asked)
                found |= texts
                wrong += [(member, f"{member}: {why}") for why in others]
            else:
                name = "caption" if kind == "txt" else "label"
                found.setdefault(name, text.decode().strip())
        except UnicodeError:
            wrong.append((member, f"{member} is no text in UTF-8"))
        except PipelineError as error:
            wrong.append((member, str(error).rstrip(".")))
    return found, wrong


def add_text(
    known: VideoTexts, videos: Iterable[str], sample: Mapping[str, Member], source: str
) -> None:
    """Adds what a sample of these videos says to what is known; `source` names it in messages."""
    kinds = KINDS[known.name]
    members = {kind: sample[kind] for kind in kinds if kind in sample}
    texts, wrong = read_texts(members, [known.name])
    known.wrong += [f"{why}; it says no {known.name}" for _, why in wrong]
    if text := known.taken(texts.get(known.name, ""), printable(source)):
        known.texts |= dict.fromkeys(videos, text)


def _texts_of(
    record: Mapping[str, object], asked: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Returns under each name the first text or whole number that a record has for its keys.

    And what it has in place of one.
    """
    found, others = {}, []
    for name in asked:
        values = [record[key] for key in NAMES[name] if record.get(key) is not None]
        texts = [str(value).strip() for value in values if type(value) in (str, int)]
        if any(texts):
            found[name] = next(filter(None, texts))
            found[name].encode()  # JSON may hold halves of characters, which no table can.
        elif len(texts) < len(values):
            other = next(type(value) for value in values if type(value) not in (str, int))
            others.append(f"its {name} is a {other.__name__}, no text or whole number")
    return found, others
