"""Which layers the program in a TorchScript file names; its text is searched, never run."""

import re
from collections.abc import Callable, Set


class ScriptText:
    """The text of a script's classes, of which `read` returns a file of those named."""

    def __init__(self, read: Callable[[str], bytes], files: Set[str]) -> None:
        self.read, self.files = read, files
        self.texts: dict[str, str] = {}

    def methods(self, script: str) -> str | None:
        """Returns the methods of a class of this dotted name; None if its text is not there."""
        module, _, name = script.rpartition(".")
        file = f"{module.replace('.', '/')}.py"
        if file not in self.files:
            return None
        if file not in self.texts:
            self.texts[file] = self.read(file).decode("utf-8", "replace")
        _, found, rest = self.texts[file].partition(f"class {name}(Module):\n")
        # What precedes the methods declares every attribute, used or not.
        return rest.partition("\nclass ")[0].partition("  def ")[2] if found else None


def is_named(attribute: str, methods: list[str | None]) -> bool:
    """Says whether any of these texts reads an attribute; yes if one of them is unknown."""
    pattern = re.compile(rf'\.{re.escape(attribute)}\b|"{re.escape(attribute)}"')
    return any(text is None or pattern.search(text) for text in methods)
