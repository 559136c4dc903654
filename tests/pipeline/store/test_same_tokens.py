from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import TokenStoreError
from pipeline.store.same_tokens import TokensOf, check_same_tokens, check_tokenizer
from tests.helpers.memory_store import MemoryStore

OURS = TokensOf("tokens", "aa", 11, (2, 3, 5))


def store_of(tokenizer):
    tokens = {"test": np.zeros((3, *OURS.grid), np.uint8)}
    return MemoryStore(tokens, {}, codebook_size=11, grid=OURS.grid, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"tokenizer": "bb"}, "samples has tokenizer bb, but tokens has aa. Mend it."),
        ({"tokenizer": None}, "samples has tokenizer None, but tokens has aa. Mend it."),
        ({"codebook_size": 12}, "samples has codebook size 12, but tokens has 11. Mend it."),
        ({"grid": (2, 3, 6)}, "samples has grid (2, 3, 6), but tokens has (2, 3, 5). Mend it."),
    ],
)
def test_the_first_difference_is_named(difference, message):
    theirs = replace(OURS, place="samples")
    check_same_tokens(theirs, OURS, "Mend it.")
    with pytest.raises(TokenStoreError) as error:
        check_same_tokens(replace(theirs, **difference), OURS, "Mend it.")
    assert str(error.value) == message


@pytest.mark.parametrize(("theirs", "ours"), [(None, "aa"), ("aa", None), (None, None)])
def test_an_unknown_tokenizer_fits_where_that_is_asked_for(theirs, ours):
    pair = (replace(OURS, tokenizer=tokenizer) for tokenizer in (theirs, ours))
    check_same_tokens(*pair, "Mend it.", unknown_fits=True)
    other = replace(OURS, tokenizer=None, grid=(1, 1, 1))
    with pytest.raises(TokenStoreError, match="has grid"):
        check_same_tokens(other, OURS, "Mend it.", unknown_fits=True)


def test_tokens_are_decoded_by_the_tokenizer_that_made_them(tmp_path):
    store = store_of("aa")
    assert TokensOf.store(store) == OURS
    check_tokenizer(store, tmp_path, "aa")
    with pytest.raises(TokenStoreError, match=r"was encoded with tokenizer aa, but .* is bb"):
        check_tokenizer(store, tmp_path, "bb")
    with pytest.raises(TokenStoreError, match="which tokenizer made its tokens is not known"):
        check_tokenizer(store_of(None), tmp_path, "bb")
