"""Whether two artefacts are of the same tokens: of one tokenizer, one codebook and one grid."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import TokenStoreError
from pipeline.storage.places import Place
from pipeline.store.reader import TokenStore


@dataclass(frozen=True)
class TokensOf:
    """The tokens that an artefact holds or was made for."""

    place: Place
    """Of the artefact, for messages."""
    tokenizer: str | None
    """Identity of the tokenizer that made them; None: not known."""
    codebook_size: int
    grid: tuple[int, int, int]
    """Of one window, (t, h, w)."""

    @classmethod
    def store(cls, store: TokenStore) -> "TokensOf":
        """Returns those of a token store."""
        return cls(store.root, store.info.tokenizer, store.codebook_size, store.grid)


def check_same_tokens(
    theirs: TokensOf, ours: TokensOf, advice: str, *, unknown_fits: bool = False
) -> None:
    """Raises TokenStoreError, naming the first difference, unless both are of the same tokens.

    `unknown_fits` takes a tokenizer that one side does not know for that of the other.
    """
    for what, their, our in (
        ("tokenizer", theirs.tokenizer, ours.tokenizer),
        ("codebook size", theirs.codebook_size, ours.codebook_size),
        ("grid", theirs.grid, ours.grid),
    ):
        if their != our and not (unknown_fits and None in (their, our)):
            raise TokenStoreError(
                f"{theirs.place} has {what} {their}, but {ours.place} has {our}. {advice}"
            )


def check_tokenizer(store: TokenStore, path: Path, identity: str) -> None:
    """Raises TokenStoreError unless the tokenizer at `path` made the tokens."""
    if store.info.tokenizer is None:
        raise TokenStoreError(
            f"{store.root} was imported: which tokenizer made its tokens is not known, so they "
            "cannot be turned into pictures here. Decode them where they came from."
        )
    if store.info.tokenizer != identity:
        raise TokenStoreError(
            f"{store.root} was encoded with tokenizer {store.info.tokenizer}, but {path} is "
            f"{identity}. Give the tokenizer that made the tokens."
        )
