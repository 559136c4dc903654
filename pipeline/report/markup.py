"""HTML elements that escape what they hold."""

from html import escape

VOID = {"img", "link", "meta", "source"}


class Markup(str):
    """Text that is HTML already; every other text is escaped when it becomes part of a page."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | int | float | None) -> Markup:
    """Makes one element of its children: text is escaped, markup kept.

    Attributes that clash with Python end in an underscore (`class_`); inner underscores become
    hyphens; None leaves an attribute out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """Puts parts after one another: text is escaped, markup kept."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))
