"""Pages are laid out by templates beside this file, which escape every text."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """Returns the templates of pages."""
    return Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
