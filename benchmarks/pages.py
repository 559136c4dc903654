"""Tables in pages of the documentation, between marks that stay."""

from pathlib import Path


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Puts a text in the place of what stands between two marks of a page.

    Raises ValueError if it has no such marks.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no {begin.strip()} … {end.strip()} for a table.")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
