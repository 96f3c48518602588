"""Three ways to cut a word: the fewest tokens are the fewest, merges played end at the encoder's own tokens."""

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue
from kobza.core.texts import text
from kobza.tokens import opening, pairs, segmentation
from kobza.tokens.ranks import bytes_vocabulary

SETS = st.sets(st.text("ab", min_size=1, max_size=4).map(str.encode))


@given(st.text("ab", min_size=1, max_size=7).map(str.encode), SETS)
def test_the_fewest_tokens_are_the_fewest(word: bytes, tokens: set[bytes]) -> None:
    known = tokens | {b"a", b"b"}
    cuts = [
        [word[i:j] for i, j in zip((0, *places), (*places, len(word)), strict=True)]
        for n in range(len(word))
        for places in combinations(range(1, len(word)), n)
    ]
    least = min(len(cut) for cut in cuts if set(cut) <= known)
    found = segmentation.fewest(word, known, 4)
    assert len(found) == least and b"".join(found) == word and set(found) <= known
    assert len(segmentation.longest_match(word, known, 4)) >= least


def test_no_way_beats_the_fewest_tokens_on_a_text() -> None:
    trained = pairs.train(text("topics[:60000]"), size=800)
    found = segmentation.table(trained, text("topics[60000:80000]"))
    own, longest, fewest = found["tokens"]
    assert fewest <= longest and fewest <= own
    assert found[0]["running words that differ"] == 0 < found[2]["running words that differ"] < 1


def test_bytes_are_cut_alike_in_every_way() -> None:
    found = segmentation.table(bytes_vocabulary(), "the sea")
    assert found["tokens"] == [7, 7, 7] and found["different words that differ"] == [0, 0, 0]


def test_merges_played_end_at_the_encoders_tokens(data: Path) -> None:
    tokenizer = opening.open(data / "tokenizers" / "r50k_base.tiktoken")
    for word in (" unbelievable", "Реве", " oceans"):
        played = segmentation.steps(tokenizer, word)
        assert played[-1]["pieces"] == "|".join(map(tokenizer.show, tokenizer.encode(word)))
        assert len(played) == len(word.encode()) - len(tokenizer.encode(word)) + 1


def test_what_has_no_words_or_no_ranks_is_refused() -> None:
    with pytest.raises(BadValue, match="has no word"):
        segmentation.table(bytes_vocabulary(), "!?")
    import kobza

    with pytest.raises(BadValue, match="is no vocabulary of ranks"):
        segmentation.steps(kobza.vocabulary("tiny"), "sea")
