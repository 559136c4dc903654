"""Names that published encoders and decoders of several resolutions have in common."""

import re
from collections.abc import Sequence

SHARED = (
    (r"\.norm\.(weight|bias)$", r".\1"),
    (r"\.conv_in\.", ".stem."),
    (r"\.conv_out\.", ".head."),
    (r"\.norm_out\.", ".norm."),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"\.proj_out\.", ".out."),
    (r"\.nin_shortcut\.", ".shortcut."),
)
"""Parts of a published name -> ours, as patterns."""


def our_name(name: str, parts: Sequence[tuple[str, str]], *, resolutions: int) -> str:
    """Translates a name. Decoders count resolutions from the finest, ours from the coarsest."""
    for old, new in parts:
        name = re.sub(old, new, name)
    if match := re.match(r"decoder\.resolutions\.(\d+)\.", name):
        number = resolutions - 1 - int(match[1])
        name = f"decoder.resolutions.{number}.{name[match.end() :]}"
    return name
